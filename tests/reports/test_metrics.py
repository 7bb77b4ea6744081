"""What /metrics says is read back by Prometheus's own parser, and is what the reports say."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import QUICK, Answer
from wan_worker import job as jobs
from wan_worker.reports import metrics
from wan_worker.reports.metrics import Server
from wan_worker.timing.progress import Control
from wan_worker.timing.record import Record

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(body: bytes) -> Samples:
    """Every sample by name and labels, as Prometheus reads it; each only once."""
    found: Samples = {}
    for family in text_string_to_metric_families(body.decode("utf-8")):
        assert family.documentation
        assert family.type in ("gauge", "counter", "summary")
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def ask(worker: jobs.Worker, report: str) -> Mapping[str, Any]:
    answer: Answer = jobs.run(
        {"id": "q", "input": {"mode": "info", "report": report}}, worker, Control()
    )
    told: Mapping[str, Any] = answer["info"]
    return told


@pytest.fixture
def used(worker: jobs.Worker) -> jobs.Worker:
    """A worker that has completed one job and failed one."""
    fresh = replace(worker, record=Record())
    inline = QUICK | {"response_format": "base64"}
    assert "error" not in jobs.run({"id": "m", "input": inline}, fresh, Control())
    assert "error" in jobs.run({"id": "m", "input": inline | {"size": 3}}, fresh, Control())
    return fresh


def test_metrics_are_what_the_reports_say(used: jobs.Worker) -> None:
    health, performance = ask(used, "health"), ask(used, "performance")
    server = Server(queued=3, running=1, limit=100, engine_up=True, restarts=2)
    samples = read(metrics.render(health, performance, server))
    assert value(samples, "wan_jobs_total", status="completed") == 1
    assert value(samples, "wan_jobs_total", status="failed") == 1
    assert value(samples, "wan_jobs_total", status="canceled") == 0
    assert value(samples, "wan_job_failures_total", code="INVALID_REQUEST") == 1
    assert value(samples, "wan_queue_jobs", state="queued") == 3
    assert value(samples, "wan_queue_jobs", state="running") == 1
    assert value(samples, "wan_engine_restarts_total") == 2
    assert value(samples, "wan_ready") == 1
    assert value(samples, "wan_busy") == 0
    assert value(samples, "wan_component_loaded", component="umt5-xxl") == 1
    assert value(samples, "wan_model_installed", model="wan2.1-t2v-1.3b") == 1
    (model,) = performance["models"]
    for stage in model["stages"]:
        labels = {"model": model["model"], "stage": stage["stage"]}
        assert value(samples, "wan_job_stage_seconds_count", **labels) == 1
        assert value(samples, "wan_job_stage_seconds_sum", **labels) == stage["seconds"]
        assert value(samples, "wan_job_stage_seconds", **labels, quantile="0.9") == stage["p90"]
    assert value(samples, "wan_process_memory_peak_bytes") > 1e8
    assert value(samples, "wan_estimate_error_ratio", quantile="0.5") >= 0
    assert value(samples, "wan_start_time_seconds") > 1.7e9


def test_a_worker_that_has_done_nothing_has_metrics_too(worker: jobs.Worker) -> None:
    fresh = replace(worker, record=Record())
    samples = read(metrics.render(ask(fresh, "health"), ask(fresh, "performance")))
    assert value(samples, "wan_jobs_total", status="completed") == 0
    assert not [name for name, _ in samples if name.startswith("wan_job_stage")]


def test_while_the_engine_is_away_the_server_speaks_for_itself() -> None:
    server = Server(queued=0, running=0, limit=7, engine_up=False, restarts=1)
    samples = read(metrics.render(server=server))
    assert value(samples, "wan_engine_up") == 0
    assert value(samples, "wan_queue_limit") == 7
    assert not [name for name, _ in samples if not name.startswith(("wan_queue", "wan_engine"))]


@pytest.mark.parametrize("name", ['a "card"', "back\\slash", "two\nlines", "猫", 'a{b="c"} 1'])
def test_a_name_cannot_write_metrics_of_its_own(worker: jobs.Worker, name: str) -> None:
    health = dict(ask(worker, "health"))
    health["hardware"] = {**health["hardware"], "name": name}
    samples = read(metrics.render(health))
    device = health["hardware"]["device"]
    assert value(samples, "wan_device_memory_bytes", device=device, name=name, of="total") > 0


def test_nothing_is_registered_anywhere(used: jobs.Worker) -> None:
    metrics.render(ask(used, "health"), ask(used, "performance"))
    names = [family.name for family in REGISTRY.collect()]
    assert not [name for name in names if name.startswith("wan_")]


def test_counters_only_grow_from_one_reading_to_the_next(used: jobs.Worker) -> None:
    before = read(metrics.render(None, ask(used, "performance")))
    jobs.run({"id": "m", "input": QUICK | {"response_format": "base64"}}, used, Control())
    after = read(metrics.render(None, ask(used, "performance")))
    counters = [key for key in before if key[0].endswith(("_total", "_count", "_sum"))]
    assert counters
    assert all(after[key] >= before[key] for key in counters)
    assert value(after, "wan_jobs_total", status="completed") == 2
