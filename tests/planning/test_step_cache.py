"""Which steps `cached` spares: the published rule on any schedule, and what the plan says."""

import pytest

from tests.builders.plans import CONTRACT, GPU, HERE, cached, with_solver
from wan_worker.catalog.magcache_ratios import Curve
from wan_worker.catalog.models import MODELS, Model
from wan_worker.errors import InvalidRequest
from wan_worker.pipelines.schedulers import scheduler
from wan_worker.planning import plan, step_cache
from wan_worker.planning.deployment import Deployment
from wan_worker.planning.plan import Plan
from wan_worker.planning.solvers import SOLVERS
from wan_worker.request import parse

CURVES = {model.id: model.magcache for model in MODELS.values() if model.magcache is not None}
URL = "https://example.com/cat.png"


def reason(made: Plan) -> str:
    (found,) = [r for r in made.reasons if r.startswith("acceleration")]
    return found


def own_schedule(model: Model) -> tuple[tuple[bool, ...], ...]:
    """What is reused on the very schedule that the ratios were measured on."""
    curve = CURVES[model.id]
    return step_cache.steps_to_reuse(model, "unipc", curve.shift, curve.steps, curve.steps)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 18, 50])
def test_the_planned_noise_levels_are_the_schedulers(solver: str, shift: float, steps: int) -> None:
    made = scheduler(with_solver(solver, shift))
    made.set_timesteps(steps)
    expected = step_cache.noise_levels(solver, shift, steps)
    assert made.sigmas[:steps].tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("model", [m for m in MODELS.values() if m.two_experts], ids=lambda m: m.id)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_steps_are_shared_out_as_the_pipeline_does(model: Model, solver: str) -> None:
    assert model.boundary_ratio is not None
    for shift in (3.0, 5.0, 12.0):
        made = scheduler(with_solver(solver, shift))
        for steps in range(1, 61):
            made.set_timesteps(steps)
            high = int((made.timesteps >= model.boundary_ratio * 1000).sum())
            found = step_cache.steps_to_reuse(model, solver, shift, steps, steps)
            assert tuple(map(len, found)) == (high, steps - high)


@pytest.mark.parametrize("model_id", list(CURVES))
def test_on_the_schedule_that_was_measured_the_published_ratios_decide(model_id: str) -> None:
    model, curve = MODELS[model_id], CURVES[model_id]
    assert own_schedule(model) == published_rule(model, curve)


def published_rule(model: Model, curve: Curve) -> tuple[tuple[bool, ...], ...]:
    """As magcache_generate.py writes it, over the list of ratios and without a curve."""
    boundary = model.boundary_ratio or 0.0
    levels = step_cache.noise_levels("unipc", curve.shift, curve.steps)
    high = sum(level >= boundary for level in levels)
    found: list[list[bool]] = [[] for _ in curve.computed_first]
    spans = [(0, high), (high, curve.steps)][: len(curve.computed_first)]
    for reused, (start, stop), share in zip(found, spans, curve.computed_first, strict=True):
        ratio = 1.0
        error, count = 0.0, 0
        for step in range(start, stop):
            skip = False
            if step - start >= int(share * (stop - start) + 0.5) and step > start:
                ratio *= curve.ratios[step - 1]
                count += 1
                error += abs(1 - ratio)
                skip = error < curve.threshold and count <= curve.in_a_row
                if not skip:
                    ratio, error, count = 1.0, 0.0, 0
            reused.append(skip)
    return tuple(map(tuple, found))


def test_the_low_noise_experts_ratios_begin_where_it_takes_over() -> None:
    """The tables are in step with Wan's own schedules: both drops lie at the boundary."""
    for model_id in ("wan2.2-t2v-a14b", "wan2.2-i2v-a14b"):
        curve, boundary = CURVES[model_id], MODELS[model_id].boundary_ratio
        assert boundary is not None
        levels = step_cache.noise_levels("unipc", curve.shift, curve.steps)
        takes_over = sum(level >= boundary for level in levels)
        middle = curve.ratios[:30]
        assert middle.index(min(middle)) == takes_over - 1


def test_there_are_as_many_ratios_as_steps_between_the_models_own() -> None:
    assert {name: curve.steps for name, curve in CURVES.items()} == {
        name: MODELS[name].steps for name in CURVES
    }


@pytest.mark.parametrize("model_id", list(CURVES))
def test_about_half_of_a_models_own_steps_are_spared_and_the_first_never(model_id: str) -> None:
    model = MODELS[model_id]
    reused = own_schedule(model)
    spared = sum(map(sum, reused)) / model.steps
    assert 0.2 < spared < 0.55
    for steps in reused:
        assert not steps[0]


def test_never_more_in_a_row_than_was_published() -> None:
    for model_id, curve in CURVES.items():
        for steps in range(1, 101):
            for part in step_cache.steps_to_reuse(MODELS[model_id], "unipc", 5.0, steps, steps):
                runs = "".join("r" if reused else " " for reused in part).split()
                assert max(map(len, runs), default=0) <= curve.in_a_row


def test_fewer_steps_lie_further_apart_and_fewer_of_them_are_spared() -> None:
    model = MODELS["wan2.1-t2v-1.3b"]
    shares = []
    for steps in (50, 25, 16, 12, 8, 4, 2):
        (reused,) = step_cache.steps_to_reuse(model, "unipc", 5.0, steps, steps)
        shares.append(sum(reused) / steps)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 0.5
    assert shares[-3:] == [0, 0, 0]


def test_a_noise_level_that_was_not_measured_is_computed() -> None:
    model = MODELS["wan2.1-t2v-1.3b"]
    levels = step_cache.noise_levels("unipc", 1.0, 50)
    lowest = step_cache.noise_levels("unipc", 5.0, 50)[-1]
    (reused,) = step_cache.steps_to_reuse(model, "unipc", 1.0, 50, 50)
    outside = [step for step, level in enumerate(levels) if level < lowest]
    assert outside
    assert not any(reused[step] for step in outside)


def test_image_to_image_reuses_within_the_steps_that_it_takes() -> None:
    made = cached(mode="image", image_url=URL, strength=0.5, num_inference_steps=40)
    assert made.steps_taken == 20
    assert sum(map(len, made.reused)) == 20
    assert f"of {made.steps_taken} steps" in reason(made)


def test_exact_is_the_default_and_reuses_nothing() -> None:
    made = plan.make(
        parse.request({"input": {"mode": "video", "prompt": "x"}}, CONTRACT), Deployment(GPU, HERE)
    )
    assert (made.acceleration, made.reused, made.reused_steps) == ("exact", (), 0)
    assert made.public()["acceleration"] == {
        "mode": "exact",
        "steps": 40,
        "reused_steps": 0,
        "weights": [],
    }


def test_the_plan_says_how_many_steps_are_spared() -> None:
    made = cached(model="wan2.1-t2v-1.3b", flow_shift=5.0)
    assert made.reused_steps == 25
    assert reason(made).startswith("acceleration: cached, 25 of 50 steps")
    assert made.public()["acceleration"] == {
        "mode": "cached",
        "steps": 50,
        "reused_steps": 25,
        "weights": [],
    }


def test_where_nothing_can_be_spared_the_plan_says_that_it_is_exact() -> None:
    made = cached(model="wan2.1-t2v-1.3b", num_inference_steps=2)
    assert made.reused_steps == 0
    assert reason(made).endswith("this is exact")


@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        ("wan2.1-vace-1.3b", {"image_url": URL}),
        ("wan2.1-flf2v-14b-720p", {"image_url": URL, "last_image_url": URL}),
    ],
)
def test_a_model_without_published_ratios_is_refused_naming_those_that_have(
    model: str, pictures: dict[str, str]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cached(model=model, **pictures)
    assert refused.value.field == "/input/acceleration"
    able = {m.id for m in MODELS.values() if m.id in refused.value.message and m.id != model}
    assert able
    for name in able:
        assert cached(model=name, **pictures).acceleration == "cached"


def test_auto_takes_a_model_that_has_published_ratios() -> None:
    here = {name: HERE[name] for name in ("wan2.1-i2v-14b-480p", "wan2.1-vace-1.3b")}
    given = {"mode": "video", "prompt": "x", "image_url": URL, "acceleration": "cached"}
    asked = parse.request({"input": given}, CONTRACT)
    assert plan.make(asked, Deployment(GPU, here)).model.id == "wan2.1-i2v-14b-480p"


def test_kept_residuals_are_in_the_memory_estimate() -> None:
    exact, kept = cached(acceleration="exact"), cached()
    off = cached(guidance_scale=1), cached(guidance_scale=1, acceleration="exact")
    pixels, frames = 1280 * 720, 81
    tokens = ((frames - 1) // 4 + 1) * pixels // 256
    residual = tokens * 5120 * 2
    more = dict(kept.layout.stages)["denoise"] - dict(exact.layout.stages)["denoise"]
    assert more == pytest.approx(2 * residual * 1.1, rel=0.01)
    more = dict(off[0].layout.stages)["denoise"] - dict(off[1].layout.stages)["denoise"]
    assert more == pytest.approx(residual * 1.1, rel=0.01)
