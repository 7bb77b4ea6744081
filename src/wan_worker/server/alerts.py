"""What should a person look at? The server's present state -> alerts, the worst first. Pure.

Each alert says what to do, and disappears with its cause.
Not covered: sending alerts (a monitor reads /metrics or requests the alerts).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from wan_worker.doctor import LEAST_FREE_BYTES
from wan_worker.errors import ClientError, WorkerError
from wan_worker.queue.ledger import Entry

Level = Literal["critical", "warning"]

HOUR: Final = 3600.0
"""Seconds during which a restart or a failed job counts as recent."""

FAILURES: Final = 3
"""An alert is raised if at least so many jobs fail in an hour through the worker's fault."""

FULL: Final = 0.8
"""The queue counts as nearly full at this share of its limit."""


@dataclass(frozen=True)
class Alert:
    level: Level
    code: str
    message: str


@dataclass(frozen=True)
class Now:
    """The server's state. Times are seconds since 1970."""

    time: float
    engine: str
    problem: str | None
    """Why the engine can't start."""
    restarts: Sequence[float]
    """When the engine was restarted."""
    queued: int
    queue_limit: int
    health: Mapping[str, Any] | None
    """``report: health``; None while the engine can't be asked."""
    ended: Sequence[Entry]
    """The latest jobs that have ended."""
    free_bytes: Mapping[str, int]
    """Free bytes on the folders' file systems, by the environment variable of the folder."""


def alerts(now: Now) -> list[Alert]:
    found = [*_engine(now), *_weights(now), *_disks(now), *_queue(now), *_jobs(now)]
    return sorted(found, key=lambda alert: alert.level)  # critical before warning


def _engine(now: Now) -> list[Alert]:
    if now.engine == "unfit":
        return [Alert("critical", "ENGINE_UNFIT", f"The engine can't start: {now.problem}")]
    if now.engine == "restarting":
        return [Alert("critical", "ENGINE_DOWN", "The engine died and is being started again")]
    recent = sum(now.time - at < HOUR for at in now.restarts)
    if recent:
        return [Alert(
            "warning", "ENGINE_RESTARTED",
            f"The engine was started again {recent} time(s) in the last hour; the log says why",
        )]  # fmt: skip
    return []


def _weights(now: Now) -> list[Alert]:
    if now.health is None:
        return []
    found = []
    if now.health["damaged"]:
        found.append(Alert(
            "critical", "WEIGHTS_DAMAGED",
            f"{', '.join(now.health['damaged'])}: files are missing or cut short; download the "
            "model again",
        ))  # fmt: skip
    if not now.health["models"]:
        found.append(Alert(
            "critical", "NO_MODEL", "No model is installed: every job fails; download one"
        ))  # fmt: skip
    return found


def _disks(now: Now) -> list[Alert]:
    return [
        Alert(
            "critical",
            "DISK_LOW",
            f"{name}: {free / 1e9:.1f} GB are free; jobs fail without {LEAST_FREE_BYTES / 1e9:.1f}",
        )
        for name, free in now.free_bytes.items()
        if free < LEAST_FREE_BYTES
    ]


def _queue(now: Now) -> list[Alert]:
    if now.queued >= now.queue_limit:
        return [Alert("critical", "QUEUE_FULL", "The queue is full: new jobs are refused")]
    if now.queued >= FULL * now.queue_limit:
        waiting = f"{now.queued} of {now.queue_limit} jobs are waiting"
        return [Alert("warning", "QUEUE_NEARLY_FULL", f"The queue is nearly full: {waiting}")]
    return []


def _jobs(now: Now) -> list[Alert]:
    recent = [
        entry
        for entry in now.ended
        if entry.ended_at is not None and now.time - entry.ended_at < HOUR
    ]
    codes = Counter(
        entry.error["code"]
        for entry in recent
        if entry.status == "failed" and entry.error and entry.error["code"] not in _CLIENT_CODES
    )
    failed = codes.total()
    if failed < FAILURES or failed * 2 < len(recent):
        return []
    most = ", ".join(f"{code} {count} times" for code, count in codes.most_common(3))
    share = f"{failed} of the last {len(recent)} jobs"
    return [Alert("warning", "JOBS_FAIL", f"{share} of this hour failed: {most}")]


def _codes(kind: type[WorkerError]) -> set[str]:
    children = kind.__subclasses__()
    return set().union(*map(_codes, children)) if children else {kind.code}


_CLIENT_CODES: Final = frozenset(_codes(ClientError))
"""Codes of failures that are the caller's fault."""
