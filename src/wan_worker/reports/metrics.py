"""What does a Prometheus server read from this worker? Reports, in Prometheus's text format.

Pure: the answers of ``mode: info`` and the HTTP server's view of its queue -> the body of
``/metrics``. This module counts nothing and keeps no registry. The numbers are the worker's own,
and start again with its process, as Prometheus expects of a counter.
Not covered: the route (server.routes_system).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

QUANTILES: Final = {"median": "0.5", "p90": "0.9", "p99": "0.99"}
"""The names of quantiles in a report, and in Prometheus."""

GB: Final = 1e9


@dataclass(frozen=True)
class Server:
    """What the HTTP server knows without asking the engine."""

    queued: int
    running: int
    limit: int
    """Jobs that may wait."""
    engine_up: bool
    """The engine takes jobs."""
    restarts: int
    """Restarts of the engine."""


class _Families(Collector):
    """Gives ``generate_latest`` the metrics, in place of a registry."""

    def __init__(self, families: Iterator[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families


def render(
    health: Mapping[str, Any] | None = None,
    performance: Mapping[str, Any] | None = None,
    server: Server | None = None,
) -> bytes:
    """The metrics in Prometheus's text format, version 0.0.4.

    Args:
        health, performance: ``info`` from the answers to these reports; None if nobody answers,
            for example while the engine starts.
        server: None if there is no queue.
    """
    return generate_latest(_Families(_families(health, performance, server)))


def _families(
    health: Mapping[str, Any] | None,
    performance: Mapping[str, Any] | None,
    server: Server | None,
) -> Iterator[Metric]:
    if server is not None:
        yield from _of_server(server)
    if health is not None:
        yield from _of_health(health)
    if performance is not None:
        yield from _of_performance(performance)


def _of_server(server: Server) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("wan_queue_jobs", "Jobs at the server by state.", labels=["state"])
    jobs.add_metric(["queued"], server.queued)
    jobs.add_metric(["running"], server.running)
    yield jobs
    yield GaugeMetricFamily("wan_queue_limit", "Jobs that may wait.", server.limit)
    yield GaugeMetricFamily(
        "wan_engine_up", "1 where the process that generates takes jobs.", float(server.engine_up)
    )
    yield CounterMetricFamily(
        "wan_engine_restarts", "Restarts of the process that generates.", server.restarts
    )


def _of_health(health: Mapping[str, Any]) -> Iterator[Metric]:
    machine = health["hardware"]
    yield GaugeMetricFamily(
        "wan_ready", "1 where a model is installed and nothing is damaged.", float(health["ready"])
    )
    yield GaugeMetricFamily("wan_busy", "1 while a job has the GPU.", float(health["busy"]))
    memory = GaugeMetricFamily(
        "wan_device_memory_bytes", "Memory of the device that models run on.",
        labels=["device", "name", "of"],
    )  # fmt: skip
    for of, key in (("total", "memory_gb"), ("not_held_by_others", "free_gb")):
        memory.add_metric([machine["device"], machine["name"], of], machine[key] * GB)
    yield memory
    yield _present("wan_model_installed", "Models that are installed.", "model", health["models"])
    yield _present("wan_component_loaded", "Components in memory.", "component", health["loaded"])
    yield _present(
        "wan_component_damaged", "Components whose files are missing or cut short.", "component",
        health["damaged"],
    )  # fmt: skip


def _of_performance(performance: Mapping[str, Any]) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "wan_start_time_seconds", "When the worker started, in seconds since 1970.",
        datetime.fromisoformat(performance["since"]).timestamp(),
    )  # fmt: skip
    jobs = CounterMetricFamily("wan_jobs", "Jobs that have ended.", labels=["status"])
    for status, count in performance["jobs"].items():
        jobs.add_metric([status], count)
    yield jobs
    failures = CounterMetricFamily(
        "wan_job_failures", "Failed jobs by their error's code.", labels=["code"]
    )
    for failure in performance["failures"]:
        failures.add_metric([failure["code"]], failure["count"])
    yield failures
    seconds = Metric("wan_job_stage_seconds", "Seconds of completed jobs in each stage.", "summary")
    peaks = GaugeMetricFamily(
        "wan_job_gpu_peak_bytes", "Most of the GPU that a job took.", labels=["model"]
    )
    for model in performance["models"]:
        for stage in model["stages"]:
            labels = {"model": model["model"], "stage": stage["stage"]}
            _summarize(seconds, labels, stage, stage["seconds"])
        if model["peak_gb"] is not None:
            peaks.add_metric([model["model"]], model["peak_gb"] * GB)
    yield seconds
    yield peaks
    yield GaugeMetricFamily(
        "wan_process_memory_peak_bytes", "Most main memory that the worker's process has held.",
        performance["memory"]["process_peak_gb"] * GB,
    )  # fmt: skip
    errors = GaugeMetricFamily(
        "wan_estimate_error_ratio", "|Estimated - taken| / taken, of the last jobs.",
        labels=["quantile"],
    )  # fmt: skip
    for name, quantile in QUANTILES.items():
        if performance["estimates"][name] is not None:
            errors.add_metric([quantile], performance["estimates"][name])
    yield errors


def _summarize(
    family: Metric, labels: Mapping[str, str], figures: Mapping[str, Any], total: float
) -> None:
    for name, quantile in QUANTILES.items():
        if figures[name] is not None:
            family.add_sample(family.name, {**labels, "quantile": quantile}, figures[name])
    family.add_sample(f"{family.name}_count", dict(labels), figures["count"])
    family.add_sample(f"{family.name}_sum", dict(labels), total)


def _present(name: str, meaning: str, label: str, found: list[str]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for value in found:
        family.add_metric([value], 1)
    return family
