"""Nothing that a stranger or a library says writes a line of its own into the log."""

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wan_worker import faults, logs

FORGED = "2026-01-01 00:00:00 INFO wan_worker.job: job x: completed"

Written = Callable[[], str]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    """The log of a worker that was set up as handler.py does it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    root.addHandler(handler)
    logs.install()
    yield stream.getvalue
    logging.setLogRecordFactory(factory)
    logging.captureWarnings(False)
    root.removeHandler(handler)


@pytest.mark.parametrize(
    "text",
    [
        f"a\n{FORGED}",
        f"a\r\n{FORGED}",
        f"a\x0b{FORGED}",
        f"a\x85{FORGED}",
        f"a\u2028{FORGED}",
        f"a\x1b[2K\x1b[1A{FORGED}",
        f"a\x00{FORGED}\x08\x08",
        f"a\u202e{FORGED}",
        f"a\ud800{FORGED}",
    ],
    ids=["newline", "CRLF", "VT", "NEL", "LS", "terminal", "NUL", "right to left", "surrogate"],
)
def test_a_record_is_one_line_whatever_it_quotes(written: Written, text: str) -> None:
    log = logging.getLogger("some.library")
    log.warning("could not read %s", text)
    log.warning(text)
    assert len(written().splitlines()) == 2
    assert all(32 <= ord(c) < 127 for c in written().replace("\n", ""))
    assert written().count("could not read a\\") == 1
    written().encode()


@pytest.mark.parametrize("words", [f"a\n{FORGED}", f"a\r{FORGED}", f"a\u2028{FORGED}"])
def test_no_line_of_a_traceback_can_be_taken_for_an_entry(written: Written, words: str) -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError:
            raise type("Odd\nError", (RuntimeError,), {})(words)  # noqa: B904
    except RuntimeError as problem:
        error = faults.classify(problem)
    assert error.code == "INTERNAL"
    entry, *traceback = written().splitlines()
    assert "unexpected Odd\\nError" in entry
    assert "test_logs.py" in written()  # what an operator needs is there
    assert "KeyError: 'first'" in written()
    assert all(line.startswith("    | ") for line in traceback)


def test_a_library_that_says_too_much_is_cut(written: Written) -> None:
    logging.getLogger("some.library").warning("%s", "x" * 10_000_000)
    assert len(written()) < logs.MESSAGE_CHARACTERS + 100
    assert written().endswith("x...\n")
    deep = RuntimeError("\n".join(["y" * 100_000] * 10_000))
    faults.classify(deep)
    assert len(written()) < (logs.TRACEBACK_LINES + 10) * (logs.LINE_CHARACTERS + 20)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://b.example/k?X-Amz-Signature=CANARY&x=1 failed",
        "Max retries exceeded with url: /b/k?X-Amz-Credential=a&X-Amz-Signature=CANARY (Caused by",
        "url='http://a/b?token=CANARY'",
        "https://user:CANARY@example.com/a.png",
        "s3://id:CANARY@b",
        "not an image: data:image/png;base64,CANARY+/abc= and so on",
        "https://a/b?q=" + "z" * 1990 + "CANARY",
    ],
    ids=["url", "path", "quoted", "password", "other scheme", "data", "over the cut"],
)
def test_the_secrets_of_urls_that_a_library_quotes_are_left_out(
    written: Written, text: str
) -> None:
    logging.getLogger("some.library").error("failed: %s", text)
    faults.classify(RuntimeError(text))
    assert "CANARY" not in written()
    assert written().count("...") >= 2


def test_ordinary_words_stay_as_they_are(written: Written) -> None:
    plain = "job a-1: OK? yes; 2 > 1, 'a' <b> 100% ~/x é 猫 https://s3.example.com/b/k.mp4 :-)"
    logging.getLogger("wan_worker.job").warning("%s", plain)
    assert written().splitlines()[-1].endswith(plain)


def test_a_librarys_own_handler_and_a_wrong_call_are_covered_too(written: Written) -> None:
    own = io.StringIO()
    library = logging.getLogger("test.own.handler")
    library.propagate = False
    library.addHandler(logging.StreamHandler(own))
    library.warning("a\n%s", FORGED)
    assert own.getvalue().splitlines() == [f"a\\n{FORGED}"]
    library.warning("%d of %d", "a\nb")
    assert "could not be formatted (TypeError)" in own.getvalue()
    library.handlers.clear()
    assert written() == ""


def test_the_event_loops_complaints_are_one_entry(written: Written) -> None:
    async def complain() -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"a\n{FORGED}", "exception": ValueError(f"b\n{FORGED}")}
        )

    asyncio.run(complain())
    assert [line for line in written().splitlines() if line.startswith("2026-01-01")] == []


def test_handler_py_sets_the_log_up_before_anything_is_served() -> None:
    source = (Path(__file__).resolve().parents[1] / "handler.py").read_text()
    assert 0 < source.index("logs.start(") < source.index("runpod.serverless.start(")
