"""LoRAs on real pipelines: they fit or are refused, do what they say, and leave nothing behind."""

import gc
import json
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file

from tests.builders.answers import sha256_of
from tests.builders.pictures import picture
from tests.builders.pipelines import build, hooks_of, make_plan
from tests.builders.requests import CYAN, T2V
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.errors import Unsupported
from wan_worker.inputs.references import References
from wan_worker.pipelines import generate, lora, offload
from wan_worker.pipelines.pool import Pool
from wan_worker.planning.memory import Layout
from wan_worker.prompts.embeddings import Embeddings
from wan_worker.request.loras import Lora
from wan_worker.settings import Placement, WeightType
from wan_worker.timing.progress import Control
from wan_worker.weights import store
from wan_worker.weights.lora_files import LoraFile

Serve = Callable[..., Answer]
State = dict[str, torch.Tensor]

BLOCKS, WIDTH, FFN, RANK = 6, 128, 384, 4
A14B = {"model": "wan2.2-t2v-a14b", "num_inference_steps": 4}

# Wan's own names of a block's matrices, and diffusers'.
NAMES = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def layers(seed: int = 0, strength: float = 0.1) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Random low-rank layers for every matrix of the tiny model: ``block.matrix`` -> down, up."""
    random = torch.Generator().manual_seed(seed)
    made = {}
    for block in range(BLOCKS):
        for name in NAMES:
            wide, high = {"ffn.0": (WIDTH, FFN), "ffn.2": (FFN, WIDTH)}.get(name, (WIDTH, WIDTH))
            down = torch.randn(RANK, wide, generator=random) * strength
            made[f"{block}.{name}"] = (down, torch.randn(high, RANK, generator=random) * strength)
    return made


def ours(name: str) -> str:
    block, _, matrix = name.partition(".")
    return f"blocks.{block}.{NAMES[matrix]}"


def written(layout: str, made: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> State:
    """The same layers as different programs save them; alpha is the rank."""
    state: State = {}
    for name, (down, up) in made.items():
        if layout == "diffusers":
            names = (
                f"transformer.{ours(name)}.lora_A.weight",
                f"transformer.{ours(name)}.lora_B.weight",
            )
        elif layout == "older diffusers":
            names = (
                f"transformer.{ours(name)}.lora.down.weight",
                f"transformer.{ours(name)}.lora.up.weight",
            )
        elif layout == "peft":
            stem = f"base_model.model.{ours(name)}"
            names = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        elif layout == "peft, bare":
            names = f"{ours(name)}.lora_A.default.weight", f"{ours(name)}.lora_B.default.weight"
        elif layout == "wan, bare":
            names = f"blocks.{name}.lora_A.default.weight", f"blocks.{name}.lora_B.default.weight"
        elif layout == "wan":
            names = (
                f"diffusion_model.blocks.{name}.lora_down.weight",
                f"diffusion_model.blocks.{name}.lora_up.weight",
            )
            state[f"diffusion_model.blocks.{name}.alpha"] = torch.tensor(float(RANK))
        else:
            stem = f"lora_unet_blocks_{name.replace('.', '_')}"
            names = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
            state[f"{stem}.alpha"] = torch.tensor(float(RANK))
        state[names[0]], state[names[1]] = down.contiguous(), up.contiguous()
    return state


def biased(state: State) -> State:
    return state | {"transformer.blocks.3.attn2.to_v.lora_B.bias": torch.full((WIDTH,), 0.5)}


def file_of(
    folder: Path,
    state: State,
    metadata: dict[str, str] | None = None,
    *,
    name: str = "made",
    **asked: Any,
) -> LoraFile:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file(state, path, metadata)
    return LoraFile(Lora(name, **asked), path)


def latents(
    worker: jobs.Worker, *files: LoraFile, layout: Layout | None = None, **changes: Any
) -> torch.Tensor:
    planned = make_plan(worker, **(T2V | changes))
    planned = replace(planned, layout=layout or planned.layout)
    here = store.installed(worker.settings.models_dir)[planned.model.id]
    pipeline = worker.pool.pipeline(planned, here, lambda: None)
    with lora.applied(pipeline, files):
        offload.arrange(pipeline, planned)
        embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
        return generate.denoise(pipeline, planned, embeds, negative, References(), Control())


def snapshot(expert: torch.nn.Module) -> list[Any]:
    """Every module and weight by identity and content."""
    found: list[Any] = [(n, id(m), type(m), m.training) for n, m in expert.named_modules()]
    for name, weight in expert.named_parameters():
        exact = weight.detach().double()
        digest = float(exact.sum()), float(exact.square().sum())
        found.append((name, id(weight), weight.data_ptr(), weight.requires_grad, *digest))
    found.append(getattr(expert, "peft_config", None))
    return found


@pytest.fixture
def experts(worker: jobs.Worker, every_model_dir: Path) -> Callable[..., Answer]:
    """Serve a request on a worker that has the models with two experts."""
    settings = replace(worker.settings, models_dir=every_model_dir)
    both = replace(worker, settings=settings, pool=Pool(worker.hardware))

    def run(changes: Mapping[str, Any]) -> Answer:
        return jobs.run({"id": "e", "input": QUICK | dict(changes)}, both, Control())

    return run


@pytest.fixture
def pipeline(worker: jobs.Worker) -> Any:
    return build(worker, make_plan(worker, **T2V))


# What a file may look like.


@pytest.mark.parametrize(
    "layout",
    ["older diffusers", "peft", "peft, bare", "wan, bare", "wan", "musubi"],
)
def test_the_same_layers_in_any_layout_make_the_same_latents(
    worker: jobs.Worker, tmp_path: Path, layout: str
) -> None:
    made = layers()
    expected = latents(worker, file_of(tmp_path / "a", written("diffusers", made)))
    assert torch.equal(latents(worker, file_of(tmp_path / "b", written(layout, made))), expected)
    assert not torch.equal(latents(worker), expected)


@pytest.mark.parametrize("how", ["wan", "musubi", "diffusers", "configuration", "pattern"])
def test_an_alpha_of_half_the_rank_halves_the_effect(
    worker: jobs.Worker, tmp_path: Path, how: str
) -> None:
    made = layers()
    half = file_of(tmp_path / "a", written("diffusers", made))
    half = replace(half, lora=replace(half.lora, scale=0.5))
    layout = how if how in ("wan", "musubi") else "diffusers"
    state, metadata = written(layout, made), None
    if layout != "diffusers":
        state = {n: t / 2 if n.endswith(".alpha") else t for n, t in state.items()}
    elif how == "diffusers":
        state |= {f"transformer.{ours(n)}.alpha": torch.tensor(RANK / 2) for n in made}
    else:
        config: dict[str, Any] = {"transformer.r": RANK, "transformer.lora_alpha": RANK / 2}
        if how == "pattern":
            patterns = {ours(name): RANK / 2 for name in made}
            config = {"transformer.lora_alpha": RANK, "transformer.alpha_pattern": patterns}
        metadata = {lora.METADATA: json.dumps(config)}
    file = file_of(tmp_path / "b", state, metadata)
    assert torch.allclose(latents(worker, file), latents(worker, half), rtol=0, atol=1e-5)


def test_a_configuration_in_a_file_can_not_touch_the_base_weights(
    worker: jobs.Worker, pipeline: Any, tmp_path: Path
) -> None:
    # peft's own: the first rewrites the base weights, the second repeats blocks.
    config = {
        "transformer.init_lora_weights": "pissa",
        "transformer.layer_replication": [[0, 6], [0, 6]],
        "transformer.lora_alpha": RANK,
    }
    state = written("diffusers", layers())
    before = snapshot(pipeline.transformer)
    hostile = file_of(tmp_path / "b", state, {lora.METADATA: json.dumps(config)})
    got = latents(worker, hostile)
    assert torch.equal(got, latents(worker, file_of(tmp_path / "a", state)))
    assert snapshot(pipeline.transformer) == before


def test_a_bias_on_some_layers_is_applied(worker: jobs.Worker, tmp_path: Path) -> None:
    state = written("diffusers", layers())
    plain = latents(worker, file_of(tmp_path / "a", state))
    state["transformer.blocks.3.attn2.to_v.lora_B.bias"] = torch.full((WIDTH,), 0.5)
    assert not torch.equal(latents(worker, file_of(tmp_path / "b", state)), plain)


@pytest.mark.parametrize(("value", "notices"), [(0.0, []), (0.5, ["LORA_PARTLY_APPLIED"])])
def test_whole_weight_differences_are_left_out_and_told(
    pipeline: Any, tmp_path: Path, value: float, notices: list[str]
) -> None:
    state = written("wan", layers())
    state["diffusion_model.blocks.0.self_attn.norm_q.diff"] = torch.full((WIDTH,), value)
    with lora.applied(pipeline, (file_of(tmp_path, state),)) as (fit,):
        assert [notice.code for notice in fit.notices] == notices
        assert fit.matched == 2 * len(layers())


def test_a_text_to_video_lora_works_on_an_image_to_video_model(serve: Serve) -> None:
    request = {"image_url": picture(), "model": "wan2.1-i2v-14b-480p"}
    plain, changed = serve(request), serve(request | {"loras": [CYAN]})
    assert sha256_of(plain) != sha256_of(changed)
    assert sha256_of(serve(request)) == sha256_of(plain)


# What does not fit.


def without(name: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if name not in n}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {n.replace(old, new): t for n, t in state.items()}


def adding(name: str, tensor: torch.Tensor) -> Callable[[State], State]:
    return lambda state: state | {name: tensor}


MISFITS: dict[str, tuple[str, Callable[[State], State], str]] = {
    "nothing matches": ("diffusers", renamed("blocks.", "layers."), " 0 of its 120"),
    "one name is unknown": (
        "diffusers",
        renamed("blocks.2.attn1.to_q", "blocks.2.attn1.to_x"),
        "118 of its 120",
    ),
    "another width": (
        "diffusers",
        lambda s: {n: torch.cat([t, t], 1) if "lora_A" in n else t for n, t in s.items()},
        " 0 of its 120",
    ),
    "half of a pair": ("diffusers", without("blocks.1.attn1.to_k.lora_B"), "118 of its 119"),
    "a text encoder's layers": (
        "diffusers",
        adding("text_encoder.block.0.lora_A.weight", torch.ones(4, 96)),
        "120 of its 121",
    ),
    "a norm": (
        "diffusers",
        adding("transformer.blocks.0.norm2.lora_A.weight", torch.ones(4, WIDTH)),
        "120 of its 121",
    ),
    "more blocks": ("diffusers", renamed("blocks.5", "blocks.6"), "more blocks"),
    "a block number that never ends": (
        "wan",
        renamed("blocks.5", "blocks.99999999999"),
        "more blocks",
    ),
    "a negative alpha": (
        "wan",
        lambda s: {n: -t if n.endswith("alpha") else t for n, t in s.items()},
        "alpha",
    ),
    "an alpha of nan": (
        "musubi",
        lambda s: {n: t * torch.nan if n.endswith("alpha") else t for n, t in s.items()},
        "alpha",
    ),
    "numbers that are not finite": (
        "diffusers",
        lambda s: {n: t * torch.inf for n, t in s.items()},
        "not finite",
    ),
    "DoRA": (
        "wan",
        adding("diffusion_model.blocks.0.self_attn.q.dora_scale", torch.ones(WIDTH, 1)),
        "DoRA",
    ),
    "LoKr": (
        "diffusers",
        lambda s: {n.replace("lora_A.weight", "lokr_w1"): t for n, t in s.items()},
        "of its",
    ),
    "an unknown layout": ("musubi", without("blocks_0_ffn_0"), "no layout"),
    "a matrix of no rank": (
        "diffusers",
        adding("transformer.proj_out.lora_A.weight", torch.ones(0, WIDTH)),
        "alpha|rank|empty",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_lora_that_does_not_fit_is_refused_and_leaves_nothing(
    pipeline: Any, tmp_path: Path, case: str
) -> None:
    layout, change, message = MISFITS[case]
    good = file_of(tmp_path, written("diffusers", layers(1)), name="good")
    bad = file_of(tmp_path, change(written(layout, layers())), name="bad", field="/input/loras/1")
    before = snapshot(pipeline.transformer)
    with pytest.raises(Unsupported, match=message) as caught, lora.applied(pipeline, (good, bad)):
        pytest.fail("it was applied")
    assert caught.value.field == "/input/loras/1/source"
    assert snapshot(pipeline.transformer) == before


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": -1}', '{"alpha_pattern": 7}']
)
def test_a_damaged_configuration_is_refused(pipeline: Any, tmp_path: Path, config: str) -> None:
    file = file_of(tmp_path, written("diffusers", layers()), {lora.METADATA: config})
    with pytest.raises(Unsupported, match="configuration"), lora.applied(pipeline, (file,)):
        pytest.fail("it was applied")


# Nothing stays.


def test_the_transformer_is_the_same_objects_after_a_lora(pipeline: Any, tmp_path: Path) -> None:
    file = file_of(tmp_path, written("diffusers", layers()))
    before = snapshot(pipeline.transformer)
    again = replace(file, lora=replace(file.lora, scale=-2.0))
    with lora.applied(pipeline, (file, again)):
        assert snapshot(pipeline.transformer) != before
    assert snapshot(pipeline.transformer) == before


def test_a_fault_while_a_lora_is_on_leaves_nothing(pipeline: Any, tmp_path: Path) -> None:
    file = file_of(tmp_path, written("diffusers", layers()))
    before = snapshot(pipeline.transformer)
    with pytest.raises(ZeroDivisionError), lora.applied(pipeline, (file,)):
        raise ZeroDivisionError
    assert snapshot(pipeline.transformer) == before


def test_a_loras_layers_are_freed_when_it_is_taken_off(pipeline: Any, tmp_path: Path) -> None:
    file = file_of(tmp_path, written("diffusers", layers()))
    with lora.applied(pipeline, (file,)):
        wrapper = weakref.ref(pipeline.transformer.blocks[0].attn1.to_q)
        weight = weakref.ref(pipeline.transformer.blocks[0].attn1.to_q.lora_A["job0"].weight)
    gc.collect()
    assert wrapper() is None
    assert weight() is None


def test_the_same_seed_gives_the_same_bytes_before_and_after_lora_jobs(
    serve: Serve, worker: jobs.Worker
) -> None:
    plain = sha256_of(serve(T2V))
    with_lora = sha256_of(serve(T2V | {"loras": [CYAN]}))
    assert with_lora != plain
    assert sha256_of(serve(T2V)) == plain
    assert sha256_of(serve(T2V | {"loras": [CYAN | {"scale": 0.5}]})) not in (plain, with_lora)
    assert sha256_of(serve(T2V | {"loras": [CYAN]})) == with_lora
    assert "error" in serve(T2V | {"loras": [{"source": "absent"}]})
    assert sha256_of(serve(T2V)) == plain


def test_a_job_that_is_cancelled_with_a_lora_on_leaves_nothing(
    serve: Serve, worker: jobs.Worker
) -> None:
    plain = sha256_of(serve(T2V))
    control = Control()
    control._notify = lambda: control.cancel() if control.latest.step == 1 else None
    job = {"id": "c", "input": QUICK | T2V | {"loras": [CYAN]}}
    error = error_of(jobs.run(job, worker, control))
    assert (error["code"], error["stage"]) == ("CANCELED", "denoise")
    assert sha256_of(serve(T2V)) == plain


def test_a_misfit_is_refused_with_its_counts_and_the_next_job_succeeds(
    serve: Serve, models_dir: Path
) -> None:
    plain = sha256_of(serve(T2V))
    state = renamed("attn1.to_q", "attn1.to_x")(written("diffusers", layers()))
    file_of(models_dir / "loras", state, name="why_not")
    error = error_of(serve(T2V | {"loras": [CYAN, {"source": "why_not"}]}))
    assert (error["code"], error["stage"]) == ("UNSUPPORTED", "load")
    assert error["field"] == "/input/loras/1/source"
    assert "108 of its 120" in error["message"]
    assert sha256_of(serve(T2V)) == plain


# Scales and experts.


def test_scale_0_changes_nothing(serve: Serve) -> None:
    off = serve(T2V | {"loras": [CYAN | {"scale": 0}]})
    assert sha256_of(off) == sha256_of(serve(T2V))


def test_two_loras_add_up(worker: jobs.Worker, tmp_path: Path) -> None:
    one, two = layers(1), layers(2)
    both = {n: tuple(torch.cat(pair, d) for d, pair in enumerate(zip(one[n], two[n], strict=True)))
            for n in one}  # fmt: skip
    summed = file_of(tmp_path, written("diffusers", both), name="sum")  # type: ignore[arg-type]
    files = [
        file_of(tmp_path, written("diffusers", made), name=f"part{i}")
        for i, made in enumerate((one, two))
    ]
    assert torch.allclose(latents(worker, *files), latents(worker, summed), rtol=0, atol=1e-4)


def test_the_answer_reports_each_lora(serve: Serve) -> None:
    plan = serve(T2V | {"loras": [{"source": "cyan.safetensors", "scale": -0.5}]})["metadata"][
        "plan"
    ]
    count = len(load_file(Path("weights/tiny-loras/cyan.safetensors")))
    assert plan["loras"] == [
        {"name": "cyan", "scale": -0.5, "stage": "both", "sha256": None, "matched": count}
    ]
    assert "loras: cyan at scale -0.5" in plan["reasons"]
    assert serve(T2V)["metadata"]["plan"]["loras"] == []


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, set[float]]]]:
    """What peft multiplies by in each expert, at the moment that a job denoises."""
    seen: list[dict[str, set[float]]] = []
    denoise = generate.denoise

    def look(pipeline: Any, *args: Any) -> Any:
        scales: dict[str, set[float]] = {}
        for role in ("transformer", "transformer_2"):
            for module in getattr(pipeline, role).modules():
                if isinstance(module, BaseTunerLayer):
                    for name in set(module.active_adapters) & set(module.scaling):
                        scales.setdefault(f"{role} {name}", set()).add(module.scaling[name])
        seen.append(scales)
        return denoise(pipeline, *args)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "denoise", look)
        yield seen


def test_each_expert_sees_its_own_scale(experts: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    high, low = CYAN | {"stage": "high"}, CYAN | {"stage": "low"}
    with watched(monkeypatch) as seen:
        experts(A14B | {"loras": [CYAN | {"scale": 0.75}]})
        experts(A14B | {"loras": [high | {"scale": 1.5}, low | {"scale": 0.5}]})
        experts(A14B | {"loras": [low | {"scale": -2}]})
    assert seen == [
        {"transformer job0": {0.75}, "transformer_2 job0": {0.75}},
        {"transformer job0": {1.5}, "transformer_2 job1": {0.5}},
        {"transformer_2 job0": {-2.0}},
    ]


def test_an_experts_scale_reaches_the_picture(experts: Serve) -> None:
    def made(*loras: Mapping[str, Any]) -> str:
        return sha256_of(experts(A14B | ({"loras": list(loras)} if loras else {})))

    high, low = CYAN | {"stage": "high"}, CYAN | {"stage": "low"}
    plain, both = made(), made(CYAN)
    assert made(high, low) == both
    assert len({plain, both, made(high), made(low), made(high, low | {"scale": 0.5})}) == 5
    assert made(high | {"scale": 0}, low | {"scale": 0}) == plain
    assert made() == plain


@pytest.mark.parametrize("stage", ["high", "low"])
def test_a_stage_on_a_model_with_one_expert_is_refused_before_any_work(
    serve: Serve, stage: str
) -> None:
    error = error_of(serve(T2V | {"loras": [CYAN, CYAN | {"stage": stage}]}))
    assert (error["code"], error["stage"]) == ("INVALID_REQUEST", "plan")
    assert error["field"] == "/input/loras/1/stage"


def test_auto_takes_a_model_with_two_experts_where_a_stage_is_asked_for(experts: Serve) -> None:
    answer = experts({"loras": [CYAN | {"stage": "low"}]})
    assert answer["metadata"]["model"] == "wan2.2-t2v-a14b"


# Beside weights that move, or are narrow.


@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("placement", ["resident", "sequential", "group"])
def test_a_lora_has_the_same_effect_wherever_and_however_narrow_the_weights_are(
    worker: jobs.Worker, tmp_path: Path, placement: Placement, kind: WeightType
) -> None:
    fresh = replace(worker, pool=Pool(worker.hardware))
    file = file_of(tmp_path, biased(written("diffusers", layers(strength=0.2))))
    exact = latents(fresh, file)
    layout = Layout(placement, kind)
    without = latents(fresh, layout=layout)
    got = latents(fresh, file, layout=layout)
    near = {"bf16": 1e-4, "fp8": 0.2, "int8": 0.05}[kind]
    assert (got - exact).norm() < near * exact.norm()
    assert (without - exact).norm() > 2 * near * exact.norm()
    torch.testing.assert_close(latents(fresh, layout=layout), without, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("placement", ["resident", "sequential", "group"])
def test_the_transformer_is_the_same_objects_after_a_lora_wherever_it_is(
    worker: jobs.Worker, tmp_path: Path, placement: Placement, kind: WeightType
) -> None:
    pool = Pool(worker.hardware)
    here = store.installed(worker.settings.models_dir)
    planned = replace(make_plan(worker, **T2V), layout=Layout(placement, kind))
    file = file_of(tmp_path, written("diffusers", layers()))
    # Accelerate brings weights back as copies: they have their places from the second job on.
    latents(replace(worker, pool=pool), layout=planned.layout)
    pipeline = pool.pipeline(planned, here[planned.model.id], lambda: None)
    before = snapshot(pipeline.transformer)
    with pytest.raises(ZeroDivisionError), lora.applied(pipeline, (file,)):
        offload.arrange(pipeline, planned)
        embeds, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
        generate.denoise(pipeline, planned, embeds, negative, References(), Control())
        raise ZeroDivisionError
    after = snapshot(pipeline.transformer)
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        if isinstance(one, tuple) and len(one) == 6:  # its address may change when it moves
            one, other = one[:2] + one[3:], other[:2] + other[3:]
        assert one == other
    assert not any(isinstance(m, BaseTunerLayer) for m in pipeline.transformer.modules())
    assert not any(hooks_of(m) for m in pipeline.transformer.modules()) or kind == "fp8"


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_a_lora_job_on_narrow_weights_is_answered_with_both(serve: Serve, precision: str) -> None:
    answer = serve(T2V | {"loras": [CYAN], "precision": precision})
    assert answer["metadata"]["plan"]["precision"] == precision
    (applied,) = answer["metadata"]["plan"]["loras"]
    assert applied["matched"] > 0
    assert sha256_of(answer) != sha256_of(serve(T2V | {"precision": precision}))
    assert sha256_of(answer) == sha256_of(serve(T2V | {"loras": [CYAN], "precision": precision}))


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_loras_own_numbers_are_not_narrowed(
    worker: jobs.Worker, tmp_path: Path, kind: WeightType
) -> None:
    here = store.installed(worker.settings.models_dir)
    planned = replace(make_plan(worker, **T2V), layout=Layout("resident", kind))
    pool = Pool(worker.hardware)
    pipeline = pool.pipeline(planned, here[planned.model.id], lambda: None)
    state = written("diffusers", layers())
    with lora.applied(pipeline, (file_of(tmp_path, state),)):
        for name in layers():
            wrapped = pipeline.transformer.get_submodule(ours(name))
            for letter in "AB":
                asked = state[f"transformer.{ours(name)}.lora_{letter}.weight"]
                assert torch.equal(getattr(wrapped, f"lora_{letter}")["job0"].weight, asked)
