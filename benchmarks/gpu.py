"""Full-size models on one GPU, ours against stock diffusers, stage by stage.

    python benchmarks/gpu.py [--models ID ...] [--json benchmarks/gpu.json]
    python benchmarks/gpu.py --toy --json /tmp/toy.json      the same steps on a CPU, in seconds

Nothing is downloaded. The models have their real configurations and random weights, made on the
device: speed does not depend on what the weights are. Ways alternate; each is built anew for its
turn, so that it has the card to itself, and is warmed up with one step before the clocks count.
Ours is planned by the worker's own planner for this card.

Stages: prompt (text encoder, prompt and negative prompt), denoise (per step with guidance, and per
forward of the transformer), decode (latents to pixels), outside (a made-up clip on the device to a
delivered file: random weights draw nothing that an encoder could be judged by).
"""

import argparse
import base64
import gc
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benchmarks import rounds, stock

from wan_worker.catalog.components import CLIP, UMT5, Component
from wan_worker.catalog.models import MODELS, Installed
from wan_worker.delivery import storage
from wan_worker.errors import WorkerError
from wan_worker.inputs import references
from wan_worker.inputs.dialing import Policy
from wan_worker.machine import hardware
from wan_worker.machine.hardware import Hardware
from wan_worker.machine.peak_flops import peak_of
from wan_worker.media import artifact, encode
from wan_worker.pipelines import generate, offload, schedulers
from wan_worker.pipelines.pool import Pool
from wan_worker.planning import segments
from wan_worker.planning.activations import Shape, shape_of
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.flops import forward_flops
from wan_worker.planning.plan import Plan
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request import parse, schema
from wan_worker.request.outputs import Output
from wan_worker.settings import Settings
from wan_worker.timing.progress import Control
from wan_worker.timing.work import tokens
from wan_worker.weights import tiny

DEFAULT = ("wan2.1-t2v-1.3b", "wan2.1-i2v-14b-480p")
PROMPT = "a red circle moving right on a white background"
STEPS = 4
TARGETS = {
    "wan2.1-t2v-1.3b": {"forward": 0.41, "decode": 0.8, "outside": 0.3},
    "wan2.1-i2v-14b-480p": {"step": 4.85, "decode": 0.8, "outside": 0.3},
}
"""Seconds on an H100 or H200."""

UMT5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "d_kv": 64,
    "vocab_size": 256384,
    "feed_forward_proj": "gated-gelu",
}
VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}


@dataclass(frozen=True)
class Bench:
    """One model's measurements."""

    model_id: str
    machine: Hardware
    toy: bool
    folder: Path

    def build(self, component: Component, _: Path, machine: Hardware, device: str) -> Any:
        """A component with random weights, in the type and place that the worker loads it in.

        Instead of ``load.load_component``, whose arguments it takes.
        """
        import diffusers
        import torch
        import transformers

        library, class_name = component.class_name.split(":")
        cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        if component.role in ("tokenizer", "image_processor"):
            return cls.from_pretrained(tiny.TRAINED / component.name)
        half = machine.device == "cuda" and not component.keep_fp32
        dtype = torch.bfloat16 if half else torch.float32
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                module = self._made(component, cls)
        finally:
            torch.set_default_dtype(torch.float32)
        wide = set(getattr(cls, "_keep_in_fp32_modules", None) or ())
        for name, part in module.named_modules():
            if wide & set(name.split(".")):
                part.float()
        return module.eval().requires_grad_(False)

    def _made(self, component: Component, cls: Any) -> Any:
        from transformers import CLIPVisionConfig, UMT5Config

        if self.toy:
            name = tiny.trained_as(component)
            config = json.loads((tiny.TRAINED / name / "config.json").read_text("utf-8"))
            if component == UMT5:
                return cls(UMT5Config(**config))
            return cls(CLIPVisionConfig(**config)) if component == CLIP else cls.from_config(config)
        if component == UMT5:
            return cls(UMT5Config(**UMT5_XXL))
        if component == CLIP:
            return cls(CLIPVisionConfig(**VIT_H))
        if component.role == "vae":
            from benchmarks.memory_model import vae_of

            return vae_of(MODELS[self.model_id])
        return cls(**MODELS[self.model_id].config.arguments())

    def plan(self, size: tuple[int, int], frames: int) -> tuple[Plan, references.References]:
        """The worker's own plan of the job, and its pictures."""
        model = MODELS[self.model_id]
        given: dict[str, Any] = {
            "mode": "video",
            "model": model.id,
            "prompt": PROMPT,
            "seed": 7,
            "width": size[0],
            "height": size[1],
            "num_frames": frames,
            "num_inference_steps": STEPS,
        }
        if model.image == "required":
            given["image_url"] = _picture(*size)
        if model.last_image == "required":
            given["last_image_url"] = _picture(*size)
        asked = parse.request({"id": "bench", "input": given}, schema.load())
        planned = segments.make(asked, Deployment(self.machine, {model.id: self.installed()}))

        def without(field: str, asked: parse.Request, problem: WorkerError) -> NoReturn:
            raise problem

        return references.gather(asked, planned, without, Settings(), Policy(), Control())

    def installed(self) -> Installed:
        model = MODELS[self.model_id]
        sizes = {c.name: 1_000_000 if self.toy else c.stored_bytes for c in model.components}
        return Installed(sizes, self.toy, {c.name: Path(c.name) for c in model.components})

    def ours(self, planned: Plan, pictures: references.References) -> rounds.Seconds:
        measured = Stages(self.machine.device)
        self._networks_ours(planned, pictures, measured)  # which are gone when it returns
        self._outside_ours(planned, measured)
        return measured.seconds

    def _networks_ours(
        self, planned: Plan, pictures: references.References, measured: "Stages"
    ) -> None:
        pool = Pool(self.machine, self.build)
        pipeline = pool.pipeline(planned, self.installed(), lambda: None)
        control = Control()

        def denoise(plan: Plan) -> Any:
            return generate.denoise(pipeline, plan, *embeds, pictures, control)

        offload.arrange(pipeline, planned)
        planned = pool.attention.use(pipeline, planned)
        *embeds, _ = generate.encode_prompts(pipeline, planned, Embeddings())  # warm
        stack = ExitStack()
        stack.enter_context(pool.compiler.applied(pipeline, planned))
        denoise(replace(planned, num_inference_steps=1))
        with measured("prompt"):
            # Nothing is known yet: a worker's first job. Later ones know the negative prompt.
            *embeds, _ = generate.encode_prompts(pipeline, planned, Embeddings())
        with measured("denoise"), measured.forwards():
            latents = denoise(planned)
        stack.close()
        layout = planned.layout.decode
        list(generate.decode(pipeline.vae, latents[:, :, :3], layout))  # warm
        with measured("decode"):
            for _ in generate.decode(pipeline.vae, latents, layout):
                pass

    def _outside_ours(self, planned: Plan, measured: "Stages") -> None:
        """From pixels on the device to a delivered file, as clips and delivery do it."""
        import torch

        width, height = planned.delivered_size
        spec = encode.Spec("mp4", width, height, planned.num_frames, planned.fps)
        clip, target = scene(planned, self.machine.device), self.folder / "0.mp4"
        ffmpeg, control = encode.find_ffmpeg(), Control()

        def frames() -> Iterator[Any]:
            for first in (0, *range(1, len(clip), 4)):
                pixels = clip[first : first + (4 if first else 1)]
                pixels = pixels.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
                yield generate.cropped(pixels.permute(0, 2, 3, 1).cpu().numpy(), planned)

        with measured("outside"), artifact.reader(target, spec, ffmpeg) as reader:
            encode.write(frames(), target, spec, control, ffmpeg)
            made = artifact.check(target, spec, control, reader)
            to = storage.Folder(self.folder)
            storage.put(made, 0, Output(PROMPT, 7), "bench", to, control)

    def stock(self, planned: Plan, pictures: references.References) -> rounds.Seconds:
        from diffusers.video_processor import VideoProcessor

        measured = Stages(self.machine.device)
        self._networks_stock(planned, pictures, measured)
        clip = scene(planned, self.machine.device).permute(1, 0, 2, 3).unsqueeze(0)
        with measured("outside"):
            video = VideoProcessor(vae_scale_factor=8).postprocess_video(clip, output_type="np")
            stock.export(video[0], self.folder / "stock.mp4", planned.fps)
        return measured.seconds

    def _networks_stock(
        self, planned: Plan, pictures: references.References, measured: "Stages"
    ) -> None:
        import diffusers
        import torch

        device = self.machine.device
        parts = {
            c.role: self.build(c, Path(), self.machine, device)
            for c in MODELS[self.model_id].components
        }
        pipeline = getattr(diffusers, planned.pipeline)(
            scheduler=schedulers.of_diffusers(planned), **parts
        )
        pipeline.set_progress_bar_config(disable=True)
        width, height = planned.generated_size
        given: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_frames": planned.generated_frames,
            "guidance_scale": planned.guidance_scale,
            "output_type": "latent",
        }
        given |= {"image": pictures.first} if pictures.first else {}
        given |= {"last_image": pictures.last} if pictures.last else {}

        def prompts() -> Any:
            with torch.no_grad():
                return pipeline.encode_prompt(
                    PROMPT, planned.negative_prompt, max_sequence_length=512
                )

        def denoise(steps: int) -> Any:
            return pipeline(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                num_inference_steps=steps,
                generator=torch.Generator("cpu").manual_seed(7),
                **given,
            ).frames

        embeds, negative = prompts()
        denoise(1)
        with measured("prompt"):
            embeds, negative = prompts()
        with measured("denoise"), measured.forwards():
            latents = denoise(planned.num_inference_steps)
        vae = pipeline.vae
        with torch.no_grad():
            vae.decode(latents[:, :, :3].to(vae.dtype))  # warm
            with measured("decode"):
                vae.decode(latents.to(vae.dtype))


class Stages:
    """Seconds and, on a GPU, peak bytes of named stages."""

    def __init__(self, device: str) -> None:
        self.seconds: rounds.Seconds = {}
        self._on_gpu = device == "cuda"

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        import torch

        if self._on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        rounds.synchronize()
        started = time.perf_counter()
        yield
        rounds.synchronize()
        self.seconds[stage] = time.perf_counter() - started
        if self._on_gpu:
            self.seconds[f"{stage}_peak_gb"] = torch.cuda.max_memory_allocated() / 1e9

    @contextmanager
    def forwards(self) -> Iterator[None]:
        """Time inside the transformers, of whichever class."""
        from diffusers import WanTransformer3DModel, WanVACETransformer3DModel

        found: rounds.Seconds = {}
        with rounds.clocked(
            found,
            wan=(WanTransformer3DModel, "forward"),
            vace=(WanVACETransformer3DModel, "forward"),
        ):
            yield
        self.seconds["transformer"] = sum(found.values())


def scene(planned: Plan, device: Any) -> Any:
    """A moving, slightly noisy picture as the decoder would leave it: [n, 3, h, w], -1..1."""
    import torch

    width, height = planned.generated_size
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(3, height, width, generator=generator).to(device) * 0.02
    x = torch.arange(width, device=device) / 40
    y = torch.arange(height, device=device)[:, None] / 30
    colour = torch.arange(3, device=device)[:, None, None]
    made = [
        torch.sin(x + i / 9 + colour) * torch.cos(y - i / 13) * 0.8 + noise.roll(i, dims=-1)
        for i in range(planned.num_frames)
    ]
    return torch.stack(made)


def _picture(width: int, height: int) -> str:
    """A gradient as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def matmul_tflops(device: str, toy: bool) -> float:
    """What this card reaches on one large bf16 matrix product: the roof in practice."""
    import torch

    side, dtype = (256, torch.float32) if toy else (8192, torch.bfloat16)
    a = torch.randn(side, side, device=device, dtype=dtype)
    found = []
    for _ in range(12):
        rounds.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            a @ a
        rounds.synchronize()
        found.append(10 * 2 * side**3 / (time.perf_counter() - started) / 1e12)
    return sorted(found)[len(found) // 2]


def measure(bench: Bench, count: int) -> dict[str, Any]:
    """One model, both ways in turn."""
    model = MODELS[bench.model_id]
    size, frames = ((64, 48), 5) if bench.toy else (model.default_size, model.native_frames)
    planned, pictures = bench.plan(size, frames)

    def turn(way: Callable[..., rounds.Seconds]) -> rounds.Seconds:
        found = way(planned, pictures)
        gc.collect()
        if bench.machine.device == "cuda":
            import torch

            torch.cuda.empty_cache()
        return found

    ways = {"stock": lambda: turn(bench.stock), "ours": lambda: turn(bench.ours)}
    found = rounds.alternate(ways, count, warm_up=0)
    branches = 2 if planned.guidance_scale > 1 else 1
    for way in found.values():
        for seconds in way:
            seconds["step"] = seconds["denoise"] / STEPS
            seconds["forward"] = seconds["transformer"] / STEPS / branches
    middle = {way: rounds.medians(seconds) for way, seconds in found.items()}
    flops = _forward_flops(bench, size, frames)
    peak = peak_of(bench.machine.name)
    for way in middle.values():
        way["tflops"] = round(flops / 1e12 / way["forward"], 3)
        if peak is not None:
            way["share_of_peak"] = round(way["tflops"] / peak[0], 3)
    report: dict[str, Any] = {
        "size": f"{size[0]}x{size[1]}",
        "frames": frames,
        "rounds": count,
        "plan": list(planned.reasons),
        "forward_tflop": round(flops / 1e12, 4),
        "seconds": middle,
        "ours_to_stock": {
            stage: round(middle["ours"][stage] / middle["stock"][stage], 3)
            for stage in ("prompt", "forward", "step", "decode", "outside")
        },
    }
    if not bench.toy and bench.model_id in TARGETS:
        report["targets_on_hopper"] = TARGETS[bench.model_id]
    return report


def _forward_flops(bench: Bench, size: tuple[int, int], frames: int) -> int:
    model = MODELS[bench.model_id]
    shape, clip, text = shape_of(model), 257, 512
    if bench.toy:
        part = next(c for c in model.components if c.role == "transformer")
        name = tiny.trained_as(part)
        config = json.loads((tiny.TRAINED / name / "config.json").read_text("utf-8"))
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        shape, clip = Shape(dim, config["ffn_dim"], config["num_layers"]), tiny.CLIP_TOKENS
    pictures = 0
    if any(c.role == "image_encoder" for c in model.components):
        pictures = clip * (2 if model.last_image == "required" else 1)
    return forward_flops(shape, tokens(model, size, frames), pictures, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--toy", action="store_true", help="toy sizes, on a CPU")
    options = parser.parse_args(arguments)
    machine = hardware.detect()
    if machine.device != "cuda" and not options.toy:
        print(f"no GPU here ({machine.reason}): --toy runs the same steps on a CPU")
        return 1
    if options.toy and options.json is None:
        parser.error("--toy needs --json: toy figures do not belong beside measured ones")
    warnings.simplefilter("ignore")
    import torch

    peak = peak_of(machine.name)
    found: dict[str, Any] = {}
    report = {
        "what": "full-size models with random weights, ours against stock diffusers",
        "toy": options.toy,
        "device": machine.name,
        "cuda": torch.version.cuda,
        "peak_tflops": peak[0] if peak else None,
        "peak_source": peak[1] if peak else None,
        "matmul_tflops": round(matmul_tflops(machine.device, options.toy), 3),
        "models": found,
    }
    path = options.json or Path(__file__).with_suffix(".json")
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            bench = Bench(model, machine, options.toy, Path(folder))
            found[model] = measure(bench, options.rounds)
            rounds.write(path, rounds.about() | report)  # a run may be cut short
    return 0


if __name__ == "__main__":
    sys.exit(main())
