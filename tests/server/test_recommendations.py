"""What is recommended has a figure behind it, and goes when that does."""

from dataclasses import replace
from typing import Any

import pytest

from wan_worker.server.recommendations import Call, Known, recommendations

MODEL, OTHER = "wan2.1-t2v-1.3b", "wan2.2-t2v-a14b"


def performance(
    load: float = 0.0, upload: float = 0.0, total: float = 100.0, out_of_memory: int = 0
) -> dict[str, Any]:
    seconds = {"load": load, "upload": upload, "total": total}
    stages = [
        {"stage": stage, "count": 4, "seconds": sum_, "median": sum_ / 4, "p90": sum_, "p99": sum_}
        for stage, sum_ in seconds.items()
    ]
    failures = [{"code": "OUT_OF_MEMORY", "count": out_of_memory}] if out_of_memory else []
    return {
        "models": [{"model": MODEL, "jobs": 4, "peak_gb": None, "stages": stages}],
        "failures": failures,
    }


KNOWN = Known(
    performance=performance(),
    models=(MODEL, OTHER),
    measured=(MODEL,),
    preloaded=(),
    concurrency=1,
    weight_type=None,
)


def ids(**changes: Any) -> list[str]:
    return [each.id for each in recommendations(replace(KNOWN, **changes))]


def test_a_server_that_is_well_set_up_is_left_alone() -> None:
    assert ids() == []


def test_a_model_with_jobs_that_was_not_measured_is_to_be_measured() -> None:
    (found,) = recommendations(replace(KNOWN, measured=()))
    assert (found.id, found.model) == (f"measure:{MODEL}", MODEL)
    assert found.request == Call("POST", "/api/v1/performance/optimize", {"model": MODEL})
    assert "4 jobs" in found.why


def test_without_jobs_the_first_installed_model_is_to_be_measured() -> None:
    none = {"models": [], "failures": []}
    assert ids(performance=none, measured=()) == [f"measure:{MODEL}"]
    assert ids(performance=none, measured=(), models=()) == []


def test_loading_that_takes_long_is_to_be_done_before_the_jobs() -> None:
    (found,) = recommendations(replace(KNOWN, performance=performance(load=20.0)))
    assert found.id == f"preload:{MODEL}"
    assert "20.0 of 100.0 s" in found.why
    assert "PRELOAD_MODELS=wan2.1-t2v-1.3b" in found.how
    assert ids(performance=performance(load=20.0), preloaded=(MODEL,)) == []
    assert ids(performance=performance(load=1.0)) == []


def test_what_is_preloaded_stays_so() -> None:
    known = replace(KNOWN, performance=performance(load=20.0), preloaded=(OTHER,))
    (found,) = recommendations(known)
    assert f"PRELOAD_MODELS={OTHER},{MODEL}" in found.how


def test_uploads_that_take_long_are_to_be_done_beside_the_next_job() -> None:
    (found,) = recommendations(replace(KNOWN, performance=performance(upload=25.0)))
    assert found.id == "concurrency"
    assert "25%" in found.why
    assert ids(performance=performance(upload=25.0), concurrency=2) == []


def test_jobs_that_ran_out_of_memory_come_first() -> None:
    known = performance(upload=25.0, out_of_memory=3)
    assert ids(performance=known) == ["weight_type", "concurrency"]
    assert ids(performance=known, weight_type="fp8") == ["concurrency"]


@pytest.mark.parametrize("changes", [{"measured": ()}, {"performance": performance(load=20.0)}])
def test_each_says_why_how_and_what_for(changes: dict[str, Any]) -> None:
    for each in recommendations(replace(KNOWN, **changes)):
        assert each.why and each.how and each.gain
