"""What may stand in the log? Every record is one entry, whatever a library or a server has said.

Exceptions of libraries quote what they were given: a name with newlines in it could write entries
of its own, a URL brings its signature along. ``install`` has every record of this process made safe
where it is made, so that the handlers that libraries bring of their own are covered too:

- a message is one line: control characters, newlines among them, are escaped, and it is cut;
- each line of a traceback begins with a bar, as no entry does;
- the queries of URLs, their passwords and inline data are left out.

Not covered: what RunPod's SDK prints (JSON, which escapes), and what is printed without logging.
"""

import logging
import re
import traceback
from typing import Any, Final

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


def start(level: str) -> None:
    """Send the process's log to standard error, each entry safe."""
    install()
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,  # RunPod's SDK has configured logging at import
    )
    # Libraries log request lines, which hold presigned URLs.
    for library in ("botocore", "boto3", "s3transfer", "urllib3", "aiohttp"):
        logging.getLogger(library).setLevel(logging.WARNING)


def install() -> None:
    """From now on, make every log record safe, and log what libraries warn of."""
    logging.setLogRecordFactory(_record)
    logging.captureWarnings(True)


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
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text = lines(record.exc_info[1])  # formatters take it where there is one
    return record
