"""What may stand in the log? Every record is one entry, whatever a library or a server has said.

Exceptions of libraries quote what they were given: a name with newlines in it could write entries
of its own, a URL brings its signature along. ``install`` has every record of this process made safe
where it is made, so that the handlers that libraries bring of their own are covered too:

- a message is one line: control characters, newlines among them, are escaped, and it is cut;
- each line of a traceback begins with a bar, as no entry does;
- the queries of URLs, their passwords and inline data are left out.

An entry is a line of text, or of JSON (``LOG_FORMAT``) with the same message and, within a job, the
job's id and stage: whatever is logged there, by whichever library. A job's begin, stages and end
are entries of their own, with ``event``.

Not covered: what RunPod's SDK prints (JSON, which escapes), and what is printed without logging.
"""

import json
import logging
import math
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from wan_worker.settings import LogFormat

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger("wan_worker.job")

MESSAGE_CHARACTERS: Final = 2_000
TRACEBACK_LINES: Final = 60
"""The last ones: there the exception is."""
LINE_CHARACTERS: Final = 500

_BAR: Final = "    | "

_HIDDEN: Final = (
    # A query, of a whole URL or of the path alone, as urllib3 has it.
    (re.compile(r"""\?[^\s"'<>=?]{1,200}=[^\s"'<>]*"""), "?..."),
    (re.compile(r"(?<=://)[^\s/@]+@"), "...@"),
    (re.compile(r"\bdata:[\w.+/;=-]{0,100},[\w+/=%-]+"), "data:..."),
)
_CONTROL: Final = re.compile(
    # C0 and C1, the separators that some viewers break lines at, what turns text around, and
    # halves of surrogate pairs, which no stream can write.
    "[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


@dataclass(frozen=True)
class _Job:
    """Whose the thread's entries are."""

    id: str
    stage: Callable[[], str]
    told: bool
    """Its events are entries."""


_current: ContextVar[_Job | None] = ContextVar("job", default=None)


def start(level: str, form: LogFormat = "text") -> None:
    """Send the process's log to standard error, each entry safe."""
    install()
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if form == "json" else logging.Formatter(TEXT))
    # By force: RunPod's SDK has configured logging at import.
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Libraries log request lines, which hold presigned URLs.
    for library in ("botocore", "boto3", "s3transfer", "urllib3", "aiohttp"):
        logging.getLogger(library).setLevel(logging.WARNING)


def install() -> None:
    """From now on, make every log record safe, and log what libraries warn of."""
    logging.setLogRecordFactory(_record)
    logging.captureWarnings(True)


@contextmanager
def of_job(job_id: str, stage: Callable[[], str], told: bool = True) -> Iterator[None]:
    """What this thread logs in the block is that job's.

    Args:
        job_id: safe to log.
        stage: asked at each entry.
        told: events of this job are logged; of a question, which is asked often, failures alone.
    """
    token = _current.set(_Job(job_id, stage, told))
    try:
        yield
    finally:
        _current.reset(token)


def event(name: str, words: str, level: int = logging.INFO, **facts: str | float | None) -> None:
    """Log that something has happened to the job of this thread, if there is one.

    Args:
        name: begin, stage or end.
        words: the same for people.
    """
    job = _current.get()
    if job is not None and (job.told or level >= logging.WARNING):
        about = {"facts": {"event": name, **facts}}
        _log.log(level, "job %s: %s", job.id, words, extra=about)


class Json(logging.Formatter):
    """Each entry as one JSON object on a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": at,
            "level": record.levelname,
            "logger": line(record.name),
            "message": record.getMessage(),
            **record.__dict__.get("job", {}),
            **{name: _plain(value) for name, value in record.__dict__.get("facts", {}).items()},
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = record.exc_text or lines(record.exc_info[1])
        return json.dumps(entry)


def _plain(value: Any) -> Any:
    """Numbers that JSON has, and texts that are safe."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return line(str(value))


def line(text: str, most: int = MESSAGE_CHARACTERS) -> str:
    """A text of anybody as one line of the log."""
    cut = text[: most * 8]  # not to search gigabytes; what is hidden below makes it shorter
    for pattern, instead in _HIDDEN:
        cut = pattern.sub(instead, cut)
    more = "..." if len(text) > most * 8 or len(cut) > most else ""
    return _CONTROL.sub(_escaped, cut[:most]) + more


def lines(problem: BaseException) -> str:
    """A traceback, of which no line can be taken for an entry of its own."""
    text = "".join(traceback.format_exception(problem)).splitlines()[-TRACEBACK_LINES:]
    return "\n".join(_BAR + line(each, LINE_CHARACTERS) for each in text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _record(*args: Any, **named: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **named)
    try:
        message = record.getMessage()
    except Exception as problem:  # noqa: BLE001 (a wrong call of a library's must not end a job)
        message = f"a message that could not be formatted ({type(problem).__name__})"
    record.msg, record.args = line(message), None
    job = _current.get()
    if job is not None:
        record.job = {"job": job.id, "stage": job.stage()}
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = lines(record.exc_info[1])  # formatters take it where there is one
    return record
