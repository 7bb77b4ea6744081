"""Nothing that a stranger or a library says writes a line of its own into the log."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK
from wan_worker import faults, logs
from wan_worker import job as jobs
from wan_worker.timing.progress import Control

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
    logging.getLogger("some.library").warning("%s", "x" * (100 * logs.MESSAGE_CHARACTERS))
    assert len(written()) < logs.MESSAGE_CHARACTERS + 100
    assert written().endswith("x...\n")
    long = "y" * (100 * logs.LINE_CHARACTERS)
    deep = RuntimeError("\n".join([long] * (10 * logs.TRACEBACK_LINES)))
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


# --- As JSON ---


Entries = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def entries(written: Written) -> Iterator[Entries]:
    """The log of a worker with LOG_FORMAT=json, entry by entry."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.Json())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield lambda: [json.loads(each) for each in stream.getvalue().splitlines()]
    root.setLevel(level)
    root.removeHandler(handler)


def test_a_job_is_told_from_its_begin_through_its_stages_to_its_end(
    entries: Entries, worker: jobs.Worker
) -> None:
    assert "error" not in jobs.run({"id": "j-1", "input": QUICK}, worker, Control())
    told = [entry for entry in entries() if "event" in entry]
    assert {entry["job"] for entry in told} == {"j-1"}
    assert [entry["event"] for entry in told] == ["begin", *["stage"] * 9, "end"]
    assert [entry["stage"] for entry in told[1:-1]] == [
        *("plan", "fetch", "queue", "load", "prompt", "denoise", "decode_encode", "check"),
        "upload",
    ]
    end = told[-1]
    assert (end["status"], end["model"]) == ("completed", "wan2.1-t2v-1.3b")
    assert end["seconds"] > 0
    # What others log amid a job is the job's too.
    assert all("job" in entry for entry in entries() if entry["logger"].startswith("wan_worker"))


def test_a_failed_jobs_end_has_its_code(entries: Entries, worker: jobs.Worker) -> None:
    jobs.run({"id": "j-2", "input": QUICK | {"size": 3}}, worker, Control())
    canceled = Control()
    canceled.cancel()
    jobs.run({"id": "j-3", "input": QUICK}, worker, canceled)
    ends = [entry for entry in entries() if entry.get("event") == "end"]
    assert [(e["job"], e["status"], e["code"], e["level"]) for e in ends] == [
        ("j-2", "failed", "INVALID_REQUEST", "WARNING"),
        ("j-3", "canceled", "CANCELED", "WARNING"),
    ]


def test_questions_are_quiet_and_what_comes_after_a_job_is_not_the_jobs(
    entries: Entries, worker: jobs.Worker
) -> None:
    question = {"mode": "info", "report": "health"}
    jobs.run({"id": "q", "input": question}, worker, Control())
    assert entries() == []
    jobs.run({"id": "q", "input": question | {"report": "wealth"}}, worker, Control())
    assert [entry["level"] for entry in entries()] == ["WARNING"]
    logging.getLogger("some.library").warning("later")
    assert "job" not in entries()[-1]


def test_two_jobs_at_once_are_told_apart(entries: Entries, worker: jobs.Worker) -> None:
    with ThreadPoolExecutor(2) as threads:
        for one in ("a", "b"):
            threads.submit(jobs.run, {"id": one, "input": QUICK}, worker, Control())
    for one in ("a", "b"):
        told = [e["event"] for e in entries() if e.get("job") == one and "event" in e]
        assert (told[0], told[-1]) == ("begin", "end")
        assert told.count("stage") == 9


def test_an_entry_is_one_line_of_plain_json_whatever_it_quotes(entries: Entries) -> None:
    try:
        raise RuntimeError(f"a\n{FORGED}\u2028?key=CANARY&x=https://u:CANARY@h/")
    except RuntimeError as problem:
        faults.classify(problem)
    with logs.of_job("j\n4", lambda: "sta\nge"):
        logs.event("end", f"a\n{FORGED}", odd=float("nan"), text="b\n\u202e\ud800", big=10**30)
    assert len(entries()) == 2
    fault, end = entries()
    assert "CANARY" not in json.dumps(fault)
    assert all(each.startswith("    | ") for each in fault["traceback"].splitlines())
    assert end["odd"] is None
    assert end["text"] == "b\\n\\u202e\\ud800"
    assert end["time"].endswith("+00:00")


def test_a_message_that_can_not_be_formatted_is_an_entry_all_the_same(entries: Entries) -> None:
    logging.getLogger("some.library").warning("%d", "x")
    assert "could not be formatted" in entries()[0]["message"]


def test_the_operator_chooses_the_form(capsys: pytest.CaptureFixture[str]) -> None:
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    kept, level = root.handlers[:], root.level
    try:
        root.handlers.clear()
        for form in ("text", "json"):
            logs.start("INFO", form)
            logging.getLogger("x").info("said")
            root.handlers.clear()
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
        logging.setLogRecordFactory(factory)
        logging.captureWarnings(False)
    text, entry = capsys.readouterr().err.splitlines()
    assert text.endswith("INFO x: said")
    assert json.loads(entry)["message"] == "said"


def test_handler_py_sets_the_log_up_before_anything_is_served() -> None:
    source = (Path(__file__).resolve().parents[1] / "handler.py").read_text()
    assert 0 < source.index("logs.start(") < source.index("runpod.serverless.start(")
