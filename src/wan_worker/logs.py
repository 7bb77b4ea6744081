"""How does the log stay safe? Every record becomes exactly one entry, and no secret gets in.

Exceptions of libraries quote their input. A name with newlines could forge entries, and a URL
contains its signature. ``install`` makes every record of this process safe when it is created, so
that it also covers the handlers that libraries add:

- a message is one line: control characters, such as newlines, are escaped, and long ones are cut;
- each line of a traceback begins with a bar; no entry does;
- the queries of URLs, their passwords and inline data are left out.

An entry is a line of text, or of JSON (``LOG_FORMAT``) with the same message. During a job, each
JSON entry also has the job's id and stage, whichever library logs it. The begin, the stages and the
end of a job are separate entries, with ``event``.

Not covered: output of RunPod's SDK (JSON, which escapes), and output that is not logged.
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
"""The last lines are kept: they name the exception."""
LINE_CHARACTERS: Final = 500

_BAR: Final = "    | "

_HIDDEN: Final = (
    # A query, of a whole URL or only of its path, as urllib3 logs it.
    (re.compile(r"""\?[^\s"'<>=?]{1,200}=[^\s"'<>]*"""), "?..."),
    (re.compile(r"(?<=://)[^\s/@]+@"), "...@"),
    (re.compile(r"\bdata:[\w.+/;=-]{0,100},[\w+/=%-]+"), "data:..."),
)
_CONTROL: Final = re.compile(
    # C0 and C1; separators at which some viewers break lines; characters that change the text's
    # direction; and halves of surrogate pairs, which no stream can write.
    "[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


@dataclass(frozen=True)
class _Job:
    """The job that the thread's entries belong to."""

    id: str
    stage: Callable[[], str]
    told: bool
    """Its events are logged."""


_current: ContextVar[_Job | None] = ContextVar("job", default=None)


def start(level: str, form: LogFormat = "text") -> None:
    """Send the process's log to standard error, with every entry made safe."""
    install()
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if form == "json" else logging.Formatter(TEXT))
    # force is needed: RunPod's SDK configures logging when it is imported.
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These libraries log request lines, which contain presigned URLs.
    for library in ("botocore", "boto3", "s3transfer", "urllib3", "aiohttp"):
        logging.getLogger(library).setLevel(logging.WARNING)


def install() -> None:
    """From now on, make every log record safe, and log the warnings of libraries."""
    logging.setLogRecordFactory(_record)
    logging.captureWarnings(True)


@contextmanager
def of_job(job_id: str, stage: Callable[[], str], told: bool = True) -> Iterator[None]:
    """Inside the block, entries of this thread belong to this job.

    Args:
        job_id: safe to log.
        stage: called for each entry.
        told: log the job's events. Questions are frequent, so only their failures are logged.
    """
    token = _current.set(_Job(job_id, stage, told))
    try:
        yield
    finally:
        _current.reset(token)


def event(name: str, words: str, level: int = logging.INFO, **facts: str | float | None) -> None:
    """Log an event of this thread's job, if it has a job.

    Args:
        name: begin, stage or end.
        words: the same, in words for people.
    """
    job = _current.get()
    if job is not None and (job.told or level >= logging.WARNING):
        about = {"facts": {"event": name, **facts}}
        _log.log(level, "job %s: %s", job.id, words, extra=about)


class Json(logging.Formatter):
    """Formats each entry as one JSON object on one line."""

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
    """A number that JSON can hold, or a safe text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return line(str(value))


def line(text: str, most: int = MESSAGE_CHARACTERS) -> str:
    """Any text as one safe line of the log."""
    cut = text[: most * 8]  # so as not to search gigabytes; hiding makes it shorter still
    for pattern, replacement in _HIDDEN:
        cut = pattern.sub(replacement, cut)
    more = "..." if len(text) > most * 8 or len(cut) > most else ""
    return _CONTROL.sub(_escaped, cut[:most]) + more


def lines(problem: BaseException) -> str:
    """A traceback; none of its lines can look like an entry."""
    text = "".join(traceback.format_exception(problem)).splitlines()[-TRACEBACK_LINES:]
    return "\n".join(_BAR + line(row, LINE_CHARACTERS) for row in text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _record(*args: Any, **named: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **named)
    try:
        message = record.getMessage()
    except Exception as problem:  # noqa: BLE001 (a library's wrong call must not end a job)
        message = f"a message that could not be formatted ({type(problem).__name__})"
    record.msg, record.args = line(message), None
    job = _current.get()
    if job is not None:
        record.job = {"job": job.id, "stage": job.stage()}
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = lines(record.exc_info[1])  # formatters use it if it is set
    return record
