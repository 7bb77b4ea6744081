"""Which jobs were submitted over HTTP, in which order, and how did each end? A SQLite file.

A job is ``queued``, then ``running``, then ``completed``, ``failed`` or ``canceled``. Only the
first recorded end counts. The records survive the process: queued jobs keep their order, and jobs
that were running when everything stopped can be found.

Two processes have the file open. The server submits and starts jobs; the engine writes each answer
before it reports the end. A request is deleted when its job has ended; the copy for display has no
pictures in it.
Not covered: the files that a job made (delivery.storage), and progress (dispatch).
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from filelock import FileLock, Timeout

from wan_worker.errors import ConfigInvalid

Status = Literal["queued", "running", "completed", "failed", "canceled"]
End = Literal["completed", "failed", "canceled"]

FILE: Final = "jobs.sqlite3"
"""In STATE_DIR."""

LOCK: Final = "server.lock"

KEPT: Final = 10_000
"""Number of ended jobs in the history; the oldest are deleted first."""

SHOWN_CHARACTERS: Final = 10_000
"""Longest text in the copy for display: prompts are shorter than this, pictures longer."""

INLINE_KEPT: Final = 50
"""Number of latest answers that keep inline files; older answers lose them."""

BUSY_SECONDS: Final = 30.0
"""How long one process waits while the other writes."""

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    request TEXT,
    shown TEXT NOT NULL,
    submitted_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    answer TEXT,
    inline INTEGER NOT NULL DEFAULT 0,
    error TEXT
);
CREATE INDEX IF NOT EXISTS by_status ON jobs (status, place);
CREATE INDEX IF NOT EXISTS by_inline ON jobs (inline, place);
"""
_BEFORE: Final = "place, id, status, shown, submitted_at, started_at, ended_at"
_FACTS: Final = f"{_BEFORE}, answer, error"
_LIGHT: Final = "json_remove(answer{})".format(
    "".join(f", '$.assets[{index}].data'" for index in range(4))  # as many as a job may make
)
_LIGHT_FACTS: Final = f"{_BEFORE}, {_LIGHT}, error"


class QueueFull(Exception):
    """The largest allowed number of jobs is already waiting."""


@dataclass(frozen=True)
class Entry:
    """One job as it stands. Times are seconds since 1970."""

    place: int
    """Grows with each submission."""
    id: str
    status: Status
    shown: dict[str, Any]
    """The request, with a short text in place of each picture."""
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    answer: dict[str, Any] | None
    """The response of a completed job (``schemas/response.schema.json``); without its inline files
    in a history, and when it is old."""
    error: dict[str, Any] | None
    """``code``, ``message``, ``field``, ``retryable`` and ``stage`` of a job that failed."""

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")


class Ledger:
    """The open file. Any thread may use it.

    Args:
        clock: gives seconds since 1970.

    Raises:
        ConfigInvalid: the file can't be opened or written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.executescript(_TABLE)
        except (OSError, sqlite3.Error) as problem:
            raise ConfigInvalid(
                f"STATE_DIR: {path.name} can't be used ({type(problem).__name__}); it must be in a "
                "folder that can be written, and whole: move a damaged one away"
            ) from problem

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, job_id: str, request: Mapping[str, Any], limit: int) -> None:
        """Put a job at the end of the queue.

        Raises:
            QueueFull: ``limit`` jobs are waiting.
        """
        text, shown = json.dumps(request), json.dumps(without_pictures(request))
        with self._writing() as file:
            waiting = file.execute("SELECT count(*) FROM jobs WHERE status = 'queued'").fetchone()
            if waiting[0] >= limit:
                raise QueueFull
            file.execute(
                "INSERT INTO jobs (id, status, request, shown, submitted_at) "
                "VALUES (?, 'queued', ?, ?, ?)",
                (job_id, text, shown, self._clock()),
            )

    def start_next(self) -> str | None:
        """Mark the job that has waited longest as running. Returns its id; None if none waits."""
        with self._writing() as file:
            row = file.execute(
                "SELECT id FROM jobs WHERE status = 'queued' ORDER BY place LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            file.execute(
                "UPDATE jobs SET status = 'running', started_at = ? WHERE id = ?",
                (self._clock(), row[0]),
            )
        return str(row[0])

    def request(self, job_id: str) -> dict[str, Any] | None:
        """The whole submitted request; None if the job has ended."""
        with self._lock:
            row = self._file.execute("SELECT request FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None or row[0] is None:
            return None
        request: dict[str, Any] = json.loads(row[0])
        return request

    def complete(self, job_id: str, answer: Mapping[str, Any]) -> bool:
        """Record the response of a job; False if it had already ended."""
        inline = any("data" in asset for asset in answer["assets"])
        return self._end(job_id, "completed", answer=json.dumps(answer), inline=inline)

    def fail(self, job_id: str, error: Mapping[str, Any]) -> bool:
        """Record why a job has no response; False if it had already ended."""
        status: End = "canceled" if error["code"] == "CANCELED" else "failed"
        return self._end(job_id, status, error=json.dumps(error))

    def drop(self, job_id: str, error: Mapping[str, Any]) -> bool:
        """End a job that is still waiting; False if it is not waiting."""
        return self._end(job_id, "canceled", error=json.dumps(error), only="queued")

    def find(self, job_id: str) -> Entry | None:
        with self._lock:
            row = self._file.execute(
                f"SELECT {_FACTS} FROM jobs WHERE id = ?",  # noqa: S608 (a constant)
                (job_id,),
            ).fetchone()
        return None if row is None else _entry(row)

    def running(self) -> list[Entry]:
        with self._lock:
            rows = self._file.execute(
                f"SELECT {_FACTS} FROM jobs WHERE status = 'running' ORDER BY place"  # noqa: S608
            ).fetchall()
        return [_entry(row) for row in rows]

    def history(
        self, limit: int, status: Status | None = None, before: int | None = None
    ) -> list[Entry]:
        """Jobs without inline files, the newest first; ``before``: place of the last one seen."""
        with self._lock:
            rows = self._file.execute(
                f"SELECT {_LIGHT_FACTS} FROM jobs WHERE (?1 IS NULL OR status = ?1) "  # noqa: S608
                "AND (?2 IS NULL OR place < ?2) ORDER BY place DESC LIMIT ?3",
                (status, before, limit),
            ).fetchall()
        return [_entry(row) for row in rows]

    def ended(self, limit: int) -> list[Entry]:
        """Ended jobs without inline files, the newest first; ``limit`` counts only these."""
        with self._lock:
            rows = self._file.execute(
                f"SELECT {_LIGHT_FACTS} FROM jobs "  # noqa: S608 (a constant)
                "WHERE status NOT IN ('queued', 'running') ORDER BY place DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [_entry(row) for row in rows]

    def counts(self) -> dict[str, int]:
        """The number of jobs of each status."""
        with self._lock:
            rows = self._file.execute("SELECT status, count(*) FROM jobs GROUP BY status")
            found = dict(rows.fetchall())
        return {
            status: found.get(status, 0)
            for status in ("queued", "running", "completed", "failed", "canceled")
        }

    def ahead(self, entry: Entry) -> int | None:
        """How many jobs wait before this one; None if it does not wait."""
        if entry.status != "queued":
            return None
        with self._lock:
            row = self._file.execute(
                "SELECT count(*) FROM jobs WHERE status = 'queued' AND place < ?", (entry.place,)
            ).fetchone()
        return int(row[0])

    def _end(
        self,
        job_id: str,
        status: End,
        answer: str | None = None,
        error: str | None = None,
        only: Status | None = None,
        inline: bool = False,
    ) -> bool:
        with self._writing() as file:
            changed = file.execute(
                "UPDATE jobs SET status = ?1, answer = ?2, error = ?3, ended_at = ?4, "
                "inline = ?5, request = NULL "
                "WHERE id = ?6 AND status IN ('queued', 'running') AND (?7 IS NULL OR status = ?7)",
                (status, answer, error, self._clock(), inline, job_id, only),
            ).rowcount
            file.execute(
                f"UPDATE jobs SET answer = {_LIGHT}, inline = 0 WHERE inline AND place <= "  # noqa: S608
                "(SELECT place FROM jobs WHERE inline ORDER BY place DESC LIMIT 1 OFFSET ?)",
                (INLINE_KEPT,),
            )
            file.execute(
                "DELETE FROM jobs WHERE place <= (SELECT place FROM jobs "
                "WHERE status NOT IN ('queued', 'running') ORDER BY place DESC LIMIT 1 OFFSET ?) "
                "AND status NOT IN ('queued', 'running')",
                (KEPT,),
            )
        return changed == 1

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; no other thread or process writes during it."""
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield self._file
            except BaseException:
                self._file.execute("ROLLBACK")
                raise
            self._file.execute("COMMIT")


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Lock the state folder for one server; the system releases it when the process ends.

    Raises:
        ConfigInvalid: another server uses the folder, or it can't be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        held = FileLock(state_dir / LOCK).acquire(timeout=0)
    except Timeout:
        raise ConfigInvalid(
            f"STATE_DIR: another server uses {state_dir}; give each its own"
        ) from None
    except OSError as problem:
        raise ConfigInvalid(f"STATE_DIR: it can't be written ({problem.strerror})") from problem
    with held:
        yield


def without_pictures(value: Any) -> Any:
    """The same JSON, with a short text in place of each picture or other very long text."""
    if isinstance(value, Mapping):
        return {name: without_pictures(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_pictures(inner) for inner in value]
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"({len(value)} characters)"
    if isinstance(value, str) and value[:5].lower() == "data:":
        return f"(data, {len(value)} characters)"
    return value


def _entry(row: tuple[Any, ...]) -> Entry:
    place, job_id, status, shown, submitted, started, ended, answer, error = row
    return Entry(
        place,
        job_id,
        status,
        json.loads(shown),
        submitted,
        started,
        ended,
        None if answer is None else json.loads(answer),
        None if error is None else json.loads(error),
    )
