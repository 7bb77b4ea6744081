"""Make classic mistakes in a scratch copy, and see that a test notices each.

    python tests/mutants.py            run all, print the table of tests/README.md
    python tests/mutants.py NAME ...   run some

A mistake that no test notices ends the run with status 1. So does one whose place in the code is
gone: the table must follow the code.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """One mistake: in ``file``, ``right`` becomes ``wrong``; ``tests`` should fail."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


FILM = "src/wan_worker/pipelines/long_video.py"
GENERATE, PIPELINES = "src/wan_worker/pipelines/generate.py", "src/wan_worker/pipelines/pool.py"
SOLVER = "src/wan_worker/planning/solvers.py"
CONDITIONS = "src/wan_worker/pipelines/conditioning.py"
PREVIEWS, GUIDANCE = (
    "src/wan_worker/pipelines/previews.py",
    "src/wan_worker/pipelines/batched_guidance.py",
)
CAUSAL, DECODER = "src/wan_worker/vae/causal.py", "src/wan_worker/vae/decoder.py"
AHEAD = "src/wan_worker/pipelines/sync_free.py"
MEANING, MODELS = "tests/pipelines/test_meaning.py", "tests/pipelines/test_every_model.py"

MUTANTS = (
    Mutant(
        "guidance sign",
        GENERATE,
        "prompt_embeds=prompt_embeds,\n                "
        "negative_prompt_embeds=negative_prompt_embeds,",
        "prompt_embeds=negative_prompt_embeds,\n                "
        "negative_prompt_embeds=prompt_embeds,",
        f"{MEANING}::test_the_prompt_is_followed",
    ),
    Mutant(
        "negative prompt dropped",
        GENERATE,
        "prompt=text,",
        'prompt=text if text in prompts else "",',
        f"{MEANING}::test_the_negative_prompt_repels",
    ),
    Mutant(
        "latent mean ignored",
        GENERATE,
        "* std + mean",
        "* std",
        "tests/pipelines/test_generate.py::test_decoding_frame_by_frame_equals_the_vaes_own_decode",
    ),
    Mutant(
        "latent std ignored",
        GENERATE,
        "* std + mean",
        "+ mean",
        f"{MEANING}::test_the_prompt_is_followed",
    ),
    Mutant(
        "frame order",
        GENERATE,
        "for index in range(latents.shape[2]):",
        "for index in reversed(range(latents.shape[2])):",
        f"{MEANING}::test_frames_are_in_order",
    ),
    Mutant(
        "frame order within a chunk",
        GENERATE,
        "yield torch.cat(chunk)",
        "yield torch.cat(chunk[::-1])",
        "tests/pipelines/test_generate.py::test_decoding_frame_by_frame_equals_the_vaes_own_decode",
    ),
    Mutant(
        "channel order",
        GENERATE,
        "return pixels[0].permute(1, 2, 3, 0)",
        "return pixels[0].permute(1, 2, 3, 0).flip(3)",
        f"{MEANING}::test_the_prompt_is_followed",
    ),
    Mutant(
        "decoder forgets a frame too early",
        CAUSAL,
        "past[layer] = frames[1 - reach :]",
        "past[layer] = frames[2 - reach :]",
        "tests/vae/test_decoder.py::test_the_pictures_are_diffusers_own",
    ),
    Mutant(
        "norms reckoned in bf16",
        CAUSAL,
        "torch.promote_types(frame.dtype, torch.float32)",
        "frame.dtype",
        "tests/vae/test_decoder.py::test_norm_and_silu_in_bf16_round_where_diffusers_rounds",
    ),
    Mutant(
        "a layer of the encoder at rest too early",
        "src/wan_worker/vae/encoder.py",
        "run < reach + 2",
        "run < reach",
        "tests/vae/test_encoder.py::test_a_clip_with_frames_alike_has_diffusers_latents",
    ),
    Mutant(
        "frames alike in one colour taken for alike",
        "src/wan_worker/vae/encoder.py",
        ".all(dim=1)",
        ".any(dim=1)",
        "tests/vae/test_encoder.py::test_a_clip_with_frames_alike_has_diffusers_latents",
    ),
    Mutant(
        "the two frames of one swapped",
        DECODER,
        "(level + 1, larger.pop())",
        "(level + 1, larger.pop(0))",
        "tests/vae/test_decoder.py::test_the_pictures_are_diffusers_own",
    ),
    Mutant(
        "shift ignored",
        SOLVER,
        "self.shift_argument: shift,",
        "self.shift_argument: 1.0,",
        "tests/pipelines/test_generate.py::test_the_requests_shift_moves_the_noise_levels",
    ),
    Mutant(
        "image conditioning dropped",
        CONDITIONS,
        'extra = {"image": references.first}',
        'extra = {"image": references.first.point(lambda level: 127)}',
        f"{MEANING}::test_a_video_begins_with_its_image_and_goes_on_as_the_prompt_says",
    ),
    Mutant(
        "last image dropped",
        CONDITIONS,
        '"last_image": references.last}',
        '"last_image": references.first}',
        f"{MODELS}::test_the_last_frames_are_the_last_images",
    ),
    Mutant(
        "VACE's picture in the wrong place",
        CONDITIONS,
        "((0, references.first), (-1, references.last))",
        "((0, references.last), (-1, references.first))",
        f"{MODELS}::test_vaces_clip_begins_or_ends_with_its_picture",
    ),
    Mutant(
        "strength ignored",
        SOLVER,
        "if plan.steps_taken < plan.num_inference_steps:",
        "if False:",
        f"{MODELS}::test_an_image_stays_closer_to_its_picture_at_a_lower_strength",
    ),
    Mutant(
        "one expert does all",
        PIPELINES,
        "= model.boundary_ratio",
        "= 0.0",
        f"{MODELS}::test_the_high_noise_expert_begins_and_the_low_noise_expert_ends",
    ),
    Mutant(
        "seed ignored",
        GENERATE,
        "manual_seed(output.seed)",
        "manual_seed(0)",
        "tests/pipelines/test_generate.py::test_every_setting_reaches_the_latents",
    ),
    Mutant(
        "a segment from the wrong frame",
        FILM,
        "Image.fromarray(chunk[-1])",
        "Image.fromarray(chunk[0])",
        f"{MEANING}::test_a_long_video_goes_on_moving_through_its_seams",
    ),
    Mutant(
        "a frame delivered twice at a seam",
        FILM,
        "fresh = chunk[1:] if repeats_first else chunk",
        "fresh = chunk",
        "tests/pipelines/test_long_video.py::test_a_long_video_has_exactly_the_frames_asked_for_in_one_file",
    ),
    Mutant(
        "a batch of one seed",
        GENERATE,
        "manual_seed(output.seed)",
        "manual_seed(plan.outputs[0].seed)",
        f"{MEANING}::test_a_seeds_content_survives_a_batch",
    ),
    Mutant(
        "one embedding for all texts",
        "src/wan_worker/pipelines/generate.py",
        "key = Key(text, encoder",
        'key = Key("", encoder',
        "tests/prompts/test_embeddings.py::test_the_file_is_the_same_with_and_without_what_was_kept",
    ),
    Mutant(
        "one residual for both branches of guidance",
        "src/wan_worker/pipelines/magcache.py",
        "step, branch = divmod(self.calls, self.branches)",
        "step, branch = self.calls // self.branches, 0",
        "tests/pipelines/test_magcache.py::test_it_is_what_diffusers_magcache_makes_to_the_bit",
    ),
    Mutant(
        "a preview of the noise",
        PREVIEWS,
        "(now - ratio * before)",
        "(now + ratio * before)",
        "tests/pipelines/test_previews.py::test_the_estimate_is_exact_on_a_straight_line",
    ),
    Mutant(
        "both branches of guidance at once, taken for each other",
        GUIDANCE,
        "first, second = made.chunk(2)",
        "second, first = made.chunk(2)",
        "tests/pipelines/test_batched_guidance.py::test_the_latents_are_those_of_two_calls_within_rounding",
    ),
    Mutant(
        "one text for both branches of guidance",
        GUIDANCE,
        "torch.cat([text, negative.to(text)])",
        "torch.cat([text, text])",
        "tests/pipelines/test_batched_guidance.py::test_the_latents_are_those_of_two_calls_within_rounding",
    ),
    Mutant(
        "a solver's factor of the wrong step",
        AHEAD,
        "return noise / self.sigmas[start], signal",
        "return noise / self.sigmas[end], signal",
        "tests/pipelines/test_sync_free.py::test_every_solver_steps_as_diffusers_own_to_the_bit",
    ),
    Mutant(
        "a solver's second order dropped",
        AHEAD,
        "moved = moved - gain * (0.5 * older)",
        "pass",
        "tests/pipelines/test_sync_free.py::test_every_solver_steps_as_diffusers_own_to_the_bit",
    ),
)


def noticed(mutant: Mutant, folder: Path) -> bool:
    """Does the mutant's test fail in a copy that has the mistake?"""
    copy = folder / mutant.name.replace(" ", "-")
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "models", "outputs", ".*_cache")
    )
    file = copy / mutant.file
    text = file.read_text("utf-8")
    if text.count(mutant.right) != 1:
        raise SystemExit(f"{mutant.name}: its place in {mutant.file} is gone or not unique")
    file.write_text(text.replace(mutant.right, mutant.wrong), "utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", mutant.tests],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode not in (0, 1):  # 1: tests ran and failed
        raise SystemExit(f"{mutant.name}: the tests did not run\n{run.stdout[-2000:]}{run.stderr}")
    return run.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args().names
    missed = 0
    print("| mistake | noticed by |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for mutant in MUTANTS:
            if chosen and mutant.name not in chosen:
                continue
            found = noticed(mutant, Path(folder))
            missed += not found
            print(f"| {mutant.name} | {f'`{mutant.tests}`' if found else 'NOTHING'} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
