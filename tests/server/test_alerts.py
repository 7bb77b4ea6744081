"""Alerts: each cause has its own, and where all is well there is none."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from wan_worker.doctor import LEAST_FREE_BYTES
from wan_worker.queue.ledger import Entry
from wan_worker.server import app, routes_reports
from wan_worker.server.alerts import FAILURES, HOUR, Now, alerts
from wan_worker.settings import Settings

WELL = Now(
    time=10_000.0,
    engine="ready",
    problem=None,
    restarts=(),
    queued=0,
    queue_limit=10,
    health={"damaged": [], "models": ["wan2.1-t2v-1.3b"]},
    ended=(),
    free_bytes={"OUTPUT_DIR": LEAST_FREE_BYTES},
)


def job(code: str | None, ago: float = 60.0) -> Entry:
    error = None if code is None else {"code": code}
    status = "completed" if code is None else "failed"
    return Entry(1, "x", status, {}, 0.0, 0.0, WELL.time - ago, None, error)  # type: ignore[arg-type]


def codes(now: Now) -> list[str]:
    return [alert.code for alert in alerts(now)]


def test_where_all_is_well_there_is_no_alert() -> None:
    assert alerts(WELL) == []


@pytest.mark.parametrize(
    ("change", "level", "code"),
    [
        ({"engine": "unfit", "problem": "DEFAULT_MODEL: wrong"}, "critical", "ENGINE_UNFIT"),
        ({"engine": "restarting"}, "critical", "ENGINE_DOWN"),
        ({"restarts": (WELL.time - 60,)}, "warning", "ENGINE_RESTARTED"),
        ({"health": {"damaged": ["umt5-xxl"], "models": ["x"]}}, "critical", "WEIGHTS_DAMAGED"),
        ({"health": {"damaged": [], "models": []}}, "critical", "NO_MODEL"),
        ({"free_bytes": {"TMPDIR": LEAST_FREE_BYTES - 1}}, "critical", "DISK_LOW"),
        ({"queued": 10}, "critical", "QUEUE_FULL"),
        ({"queued": 8}, "warning", "QUEUE_NEARLY_FULL"),
        ({"ended": [job("INTERNAL")] * FAILURES}, "warning", "JOBS_FAIL"),
    ],
)
def test_each_cause_has_an_alert(change: dict[str, object], level: str, code: str) -> None:
    (alert,) = alerts(replace(WELL, **change))  # type: ignore[arg-type]
    assert (alert.level, alert.code) == (level, code)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "starting", "health": None},
        {"restarts": (WELL.time - HOUR - 1,)},
        {"queued": 7},
        {"ended": [job("INTERNAL")] * (FAILURES - 1)},
        {"ended": [job("INTERNAL", HOUR + 1)] * 9},
        {"ended": [job("INVALID_REQUEST")] * 9},
        {"ended": [job("UNSUPPORTED"), job("IMAGE_REJECTED"), job("URL_BLOCKED")] * 3},
        {"ended": [job("INTERNAL")] * FAILURES + [job(None)] * (FAILURES + 1)},
    ],
)
def test_what_is_no_cause_raises_none(change: dict[str, object]) -> None:
    assert alerts(replace(WELL, **change)) == []  # type: ignore[arg-type]


def test_the_worst_comes_first() -> None:
    now = replace(WELL, queued=8, engine="restarting", restarts=(WELL.time,))
    assert codes(now) == ["ENGINE_DOWN", "QUEUE_NEARLY_FULL"]


def test_an_alert_names_what_it_is_about() -> None:
    now = replace(WELL, ended=[job("GPU_FAULT")] * 3 + [job("INTERNAL")])
    assert "GPU_FAULT 3 times" in alerts(now)[0].message
    damaged = replace(WELL, health={"damaged": ["umt5-xxl"], "models": ["x"]})
    assert "umt5-xxl" in alerts(damaged)[0].message


def test_jobs_that_failed_are_seen_behind_any_number_that_wait(tmp_path: Path) -> None:
    parts = app.make_parts(Settings(state_dir=tmp_path, output_dir=tmp_path))
    for number in range(FAILURES + routes_reports.RECENT):
        parts.ledger.submit(str(number), {}, 100)
    for _ in range(FAILURES):
        parts.ledger.fail(str(parts.ledger.start_next()), {"code": "INTERNAL"})
    found = asyncio.run(routes_reports._alerts(parts))
    parts.ledger.close()
    assert "JOBS_FAIL" in [alert.code for alert in found]
