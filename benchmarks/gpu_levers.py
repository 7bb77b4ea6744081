"""Each way to compute the same function by itself, on one GPU, full-size models, random weights.

    python benchmarks/gpu_levers.py [--models ID ...] [--json benchmarks/gpu_levers.json]
    python benchmarks/gpu_levers.py --toy --json /tmp/toy.json    the same rows on a CPU, in seconds

A row is one way: an attention kernel, fused projections, compiled blocks, both branches of guidance
in one forward, a type for the decoder, or diffusers' way through the VAE; with its seconds, its
peak memory, and how far its result is from the first row's of its part. Rows of a part share one
loaded pipeline, each is warmed up, and the file is written after each: what a run did not get to
within ``--budget`` seconds, the next one adds.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds
from benchmarks.gpu import DEFAULT, Bench, Stages

from wan_worker.catalog.models import MODELS
from wan_worker.inputs.references import References
from wan_worker.machine import hardware
from wan_worker.pipelines import attention, compiling, generate, offload
from wan_worker.pipelines.compiling import Compiler
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import activations
from wan_worker.planning.plan import Plan
from wan_worker.planning.speedups import Speedups
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.timing.progress import Control
from wan_worker.vae import encoder

KERNELS = ("native", "_native_cudnn", "_native_flash", "_native_efficient", "_flash_3", "flash")
DECODES = {
    "fp32, no TF32": {"tf32": False},
    "diffusers' own, no TF32": {"tf32": False, "how": "diffusers"},
    "diffusers' own": {"how": "diffusers"},
    "fp32": {},
    "fp32, cudnn.benchmark": {"benchmark": True},
    "bf16": {"how": "bf16"},
    "bf16, cudnn.benchmark": {"how": "bf16", "benchmark": True},
    "tiled": {"how": "tiled"},
}
"""Rows of the decoder; the first, strictly fp32, is what the others are compared with. torch lets
cuDNN round a convolution's inputs to TF32 unless it is told not to."""

Row = Callable[[], tuple[rounds.Seconds, Any]]


class Rows:
    """The report: rows that are there already are not measured again, each is written at once."""

    def __init__(self, path: Path, about: dict[str, Any], deadline: float) -> None:
        self._path, self._deadline = path, deadline
        self.report: dict[str, Any] = about | {"rows": {}}
        if path.exists():
            before = json.loads(path.read_text("utf-8"))
            if all(before.get(key) == about[key] for key in ("toy", "device", "versions")):
                self.report["rows"] = before["rows"]
        self._first: dict[str, Any] = {}

    def add(self, part: str, name: str, row: Row) -> None:
        """Measure a row of a part, unless it is known or time is up; a failure is a row too."""
        known = self.report["rows"].setdefault(part, {})
        is_first = part not in self._first
        if (name in known and not is_first) or time.monotonic() > self._deadline:
            return
        try:
            found, made = row()
        except Exception as problem:  # noqa: BLE001 (what this GPU or torch does not have)
            known[name] = {"failed": type(problem).__name__}
        else:
            first = self._first.setdefault(part, made)
            known[name] = {stage: round(value, 4) for stage, value in found.items()}
            scale = first.float().square().mean().sqrt()
            error = (made.float() - first.float()).square().mean().sqrt() / scale
            known[name]["relative_difference"] = float(f"{float(error):.1e}")
        rounds.write(self._path, self.report)


def denoise_rows(bench: Bench, rows: Rows, size: tuple[int, int], frames: int, what: str) -> Any:
    """Ways of the transformer. Returns the pipeline and the latents of the first."""
    planned, pictures = bench.plan(size, frames)
    pool = Pool(bench.machine, bench.build, Compiler())
    pipeline = pool.pipeline(planned, bench.installed(), lambda: None)
    offload.arrange(pipeline, planned)
    *embeds, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    part = f"{bench.model_id}, {what}: denoise"

    def row(way: Speedups, fused: bool = False, remembers: bool = True) -> Row:
        def run() -> tuple[rounds.Seconds, Any]:
            with _set(pipeline, way, fused, remembers):
                return _denoise(bench, pipeline, replace(planned, speedups=way), embeds, pictures)

        return run

    stock = Speedups()
    rows.add(part, "stock", row(stock, remembers=False))
    for name in KERNELS:
        rows.add(part, f"attention {name}", row(Speedups((name,)), remembers=False))
    if frames == 1:
        rows.add(part, "prompt remembered", row(stock))
        rows.add(part, "guidance together", row(Speedups(batched_guidance=True)))
    rows.add(part, "fused projections", row(stock, fused=True, remembers=False))
    rows.add(part, "compiled", row(Speedups(compiled=True), remembers=False))
    best = replace(planned.speedups, attention=(_right(pipeline, planned),))
    rows.add(part, "as planned", row(best))
    rows.add(part, "as planned, compiled", row(replace(best, compiled=True), remembers=False))
    return pipeline, planned


def _right(pipeline: Any, planned: Plan) -> str:
    """The first of the plan's kernels that is right here."""
    used = attention.KernelChecks().use(pipeline, planned).reasons
    said = next((reason for reason in used if reason.startswith("attention: ")), "")
    named = [n for n in planned.speedups.attention if attention.NAMES[n] in said.split(";")[0]]
    return named[0] if named else "native"


@contextmanager
def _set(pipeline: Any, way: Speedups, fused: bool, remembers: bool) -> Iterator[None]:
    experts = [pipeline.transformer, getattr(pipeline, "transformer_2", None)]
    experts = [expert for expert in experts if expert is not None]
    bound = activations.TEXT_CACHE_TOKENS
    with ExitStack() as stack:
        for expert in experts:
            attention._set(expert, way.attention[0])
            stack.callback(expert.reset_attention_backend)
            if fused:
                expert.fuse_qkv_projections()
                stack.callback(expert.unfuse_qkv_projections)
        if not remembers:
            activations.TEXT_CACHE_TOKENS = 0
            stack.callback(setattr, activations, "TEXT_CACHE_TOKENS", bound)
        yield


def _denoise(
    bench: Bench, pipeline: Any, planned: Plan, embeds: list[Any], pictures: References
) -> tuple[rounds.Seconds, Any]:
    measured, compiler = Stages(bench.machine.device), Compiler()
    with compiler.applied(pipeline, planned):
        with measured("first"):  # warms up, compiles
            generate.denoise(
                pipeline, replace(planned, num_inference_steps=1), *embeds, pictures, Control()
            )
        with measured("denoise"), measured.forwards():
            latents = generate.denoise(pipeline, planned, *embeds, pictures, Control())
    if compiler.problem:
        raise RuntimeError(compiler.problem)
    seconds = measured.seconds
    found = {"step": seconds["denoise"] / planned.steps_taken, "first": seconds["first"]}
    if "denoise_peak_gb" in seconds:
        found["peak_gb"] = seconds["denoise_peak_gb"]
    return found, latents


def decode_rows(bench: Bench, rows: Rows, pipeline: Any, planned: Plan) -> None:
    """Ways of the decoder, on noise of the clip's shape."""
    vae, latents = pipeline.vae, _latents(bench, pipeline, planned)
    part = f"{bench.model_id}: decode"

    def row(given: dict[str, Any]) -> Row:
        def run() -> tuple[rounds.Seconds, Any]:
            with _decoding(given):
                how = given.get("how", "fp32")
                decode = partial(_theirs, vae) if how == "diffusers" else partial(_ours, vae, how)
                decode(latents[:, :, :3])
                measured = Stages(bench.machine.device)
                with measured("decode"):
                    made = decode(latents)
            return measured.seconds, made

        return run

    for name, given in DECODES.items():
        rows.add(part, name, row(given))


def encode_rows(bench: Bench, rows: Rows, pipeline: Any, planned: Plan) -> None:
    """Diffusers' encoder and ours: what image-to-video conditions on, and a moving clip."""
    import torch

    vae, (width, height) = pipeline.vae, planned.generated_size
    drawn = torch.Generator("cpu").manual_seed(7)
    moving = torch.rand(1, 3, planned.generated_frames, height, width, generator=drawn) * 2 - 1
    still = moving.clone()
    still[:, :, 1:] = 0

    def row(encode: Callable[[Any, Any], Any], clip: Any) -> Row:
        def run() -> tuple[rounds.Seconds, Any]:
            given = clip.to(bench.machine.device)
            with torch.no_grad():
                encode(vae, given[:, :, :9])
                measured = Stages(bench.machine.device)
                with measured("encode"):
                    made = encode(vae, given)
            return measured.seconds, made.cpu()

        return run

    for said, clip in (("a picture and grey", still), ("a moving clip", moving)):
        part = f"{bench.model_id}: encode {said}"
        rows.add(part, "diffusers' own", row(_encoded_by_diffusers, clip))
        rows.add(part, "frame by frame", row(encoder.moments, clip))


def _encoded_by_diffusers(vae: Any, clip: Any) -> Any:
    _as_diffusers_lays_them_out(vae.encoder)
    return vae._encode(clip)


def _as_diffusers_lays_them_out(network: Any) -> None:
    import torch

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.weight.data = layer.weight.data.contiguous()


def _latents(bench: Bench, pipeline: Any, planned: Plan) -> Any:
    import torch

    width, height = planned.generated_size
    scale = pipeline.vae_scale_factor_spatial
    frames = (planned.generated_frames - 1) // 4 + 1
    shape = (1, pipeline.vae.config.z_dim, frames, height // scale, width // scale)
    drawn = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(7))
    return drawn.to(bench.machine.device)


def _ours(vae: Any, how: activations.Decode, latents: Any) -> Any:
    import torch

    return torch.cat(list(generate.decode(vae, latents, how)))


def _theirs(vae: Any, latents: Any) -> Any:
    """``vae.decode`` and rounding, on weights as diffusers lays them out."""
    import torch

    _as_diffusers_lays_them_out(vae.decoder)
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
    std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
    with torch.no_grad():
        pixels = vae.decode(latents * std + mean, return_dict=False)[0][0]
    return ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu()


@contextmanager
def _decoding(given: dict[str, Any]) -> Iterator[None]:
    import torch

    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32 = given.get("tf32", True)
    torch.backends.cudnn.benchmark = given.get("benchmark", False)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds to begin rows in")
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.budget
    machine = hardware.detect()
    if machine.device != "cuda" and not options.toy:
        print(f"no GPU here ({machine.reason}): --toy runs the same rows on a CPU")
        return 1
    if options.toy and options.json is None:
        parser.error("--toy needs --json: toy figures do not belong beside measured ones")
    if options.toy:
        compiling.BACKEND = "eager"  # torch's tracer alone: a compiler takes a minute on a CPU
    warnings.simplefilter("ignore")
    import diffusers
    import torch

    about = rounds.about() | {
        "what": "each way by itself, full-size models with random weights",
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "toy": options.toy,
        "device": machine.name,
    }
    rows = Rows(options.json or Path(__file__).with_suffix(".json"), about, deadline)
    with tempfile.TemporaryDirectory() as folder:
        for model_id in options.models:
            model = MODELS[model_id]
            bench = Bench(model_id, machine, options.toy, Path(folder))
            clip = ((64, 48), 5) if options.toy else (model.default_size, model.native_frames)
            pipeline, planned = denoise_rows(bench, rows, *clip, what="native clip")
            decode_rows(bench, rows, pipeline, planned)
            if model.image == "required":
                encode_rows(bench, rows, pipeline, planned)
            del pipeline
            if model.image != "required":
                image = (64, 48) if options.toy else (832, 480)
                denoise_rows(bench, rows, image, 1, what="image")
    return 0


if __name__ == "__main__":
    sys.exit(main())
