"""The ledger of jobs: what it promises to whoever submits one."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from wan_worker.queue import ledger
from wan_worker.queue.ledger import FILE, Ledger, QueueFull

GONE = {"code": "CANCELED", "message": "x", "field": None, "retryable": False, "stage": "queue"}
FAILED = GONE | {"code": "INTERNAL"}
ANSWER = {"status": "completed", "assets": [], "warnings": []}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / FILE


@pytest.fixture
def book(path: Path) -> Iterator[Ledger]:
    with Ledger(path, Clock()) as opened:
        yield opened


def submit(book: Ledger, *names: str) -> None:
    for name in names:
        book.submit(name, {"prompt": name}, 100)


def test_jobs_start_in_the_order_in_which_they_were_submitted(book: Ledger) -> None:
    submit(book, "c", "a", "b")
    assert [book.start_next() for _ in range(4)] == ["c", "a", "b", None]


def test_the_order_outlives_the_process(book: Ledger, path: Path) -> None:
    submit(book, "c", "a", "b")
    assert book.start_next() == "c"
    with Ledger(path) as later:
        assert [entry.id for entry in later.running()] == ["c"]
        assert [later.start_next(), later.start_next()] == ["a", "b"]
        assert later.request("b") == {"prompt": "b"}


def test_a_full_queue_takes_nothing(book: Ledger) -> None:
    for name in ("a", "b"):
        book.submit(name, {}, 2)
    with pytest.raises(QueueFull):
        book.submit("c", {}, 2)
    assert book.find("c") is None
    book.start_next()  # one that runs does not wait
    book.submit("c", {}, 2)


def test_two_that_start_jobs_never_start_the_same(path: Path) -> None:
    with Ledger(path) as one, Ledger(path) as other:
        submit(one, *(f"job-{i}" for i in range(50)))
        started: list[str] = []

        def work(book: Ledger) -> None:
            while (name := book.start_next()) is not None:
                started.append(name)

        threads = [threading.Thread(target=work, args=(book,)) for book in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(started) == sorted(f"job-{i}" for i in range(50))


def test_the_first_end_of_a_job_is_the_one_that_counts(book: Ledger) -> None:
    submit(book, "a")
    book.start_next()
    assert book.complete("a", ANSWER) is True
    assert book.fail("a", FAILED) is False
    found = book.find("a")
    assert found is not None
    assert (found.status, found.answer, found.error) == ("completed", ANSWER, None)
    assert found.submitted_at < (found.started_at or 0) < (found.ended_at or 0)


@pytest.mark.parametrize(("error", "status"), [(GONE, "canceled"), (FAILED, "failed")])
def test_a_job_that_has_no_answer_says_why(
    book: Ledger, error: dict[str, object], status: str
) -> None:
    submit(book, "a")
    book.start_next()
    book.fail("a", error)
    found = book.find("a")
    assert found is not None
    assert (found.status, found.error, found.ended) == (status, error, True)


def test_only_a_job_that_waits_is_dropped(book: Ledger) -> None:
    submit(book, "a", "b")
    book.start_next()
    assert book.drop("a", GONE) is False
    assert book.drop("b", GONE) is True
    assert book.start_next() is None


def test_a_jobs_place_is_how_many_wait_before_it(book: Ledger) -> None:
    submit(book, "a", "b", "c")
    book.drop("a", GONE)
    entries = [book.find(name) for name in "abc"]
    assert [entry and book.ahead(entry) for entry in entries] == [None, 0, 1]


def test_what_is_shown_has_no_pictures_and_the_request_goes_when_the_job_ends(
    book: Ledger,
) -> None:
    inline = "data:image/png;base64," + "A" * 50
    request = {"prompt": "x", "image_url": inline, "config": {"first_frame": "B" * 20_000},
               "loras": [{"source": "https://example.com/a"}]}  # fmt: skip
    book.submit("a", request, 1)
    found = book.find("a")
    assert found is not None
    assert found.shown == request | {
        "image_url": f"(data, {len(inline)} characters)",
        "config": {"first_frame": "(20000 characters)"},
    }
    assert book.request("a") == request
    book.fail("a", FAILED)
    assert book.request("a") is None


def test_the_history_is_told_page_by_page(book: Ledger) -> None:
    submit(book, "a", "b", "c")
    book.drop("b", GONE)
    first = book.history(2)
    assert [entry.id for entry in first] == ["c", "b"]
    assert [entry.id for entry in book.history(2, before=first[-1].place)] == ["a"]
    assert [entry.id for entry in book.history(9, status="canceled")] == ["b"]
    assert book.counts() == {"queued": 2, "running": 0, "completed": 0, "failed": 0, "canceled": 1}


def test_the_ended_are_told_past_all_that_wait(book: Ledger) -> None:
    submit(book, "a", "b", "c", "d", "e")
    for name in "abc":
        book.start_next()
        book.fail(name, FAILED)
    assert [entry.id for entry in book.ended(2)] == ["c", "b"]


def test_the_history_does_not_grow_for_ever(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT", 2)
    submit(book, "waiting", "a", "b", "c")
    for name in "abc":
        book.fail(name, FAILED)
    assert [entry.id for entry in book.history(9)] == ["c", "b", "waiting"]


def inline(number: int) -> dict[str, object]:
    assets = [{"data": "A" * 100, "bytes": number}, {"data": "B", "bytes": 1}]
    return ANSWER | {"assets": assets}


def test_a_history_does_not_hold_the_files_that_are_in_answers(book: Ledger) -> None:
    submit(book, "a", "b")
    book.complete("a", inline(1))
    (_, told) = book.history(9)
    assert told.answer == ANSWER | {"assets": [{"bytes": 1}, {"bytes": 1}]}
    found = book.find("a")
    assert found is not None
    assert found.answer == inline(1)


def test_only_the_latest_answers_hold_their_files(
    book: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "INLINE_KEPT", 2)
    url = ANSWER | {"assets": [{"url": "x", "key": "y", "bytes": 1}]}
    submit(book, "old", "url", "b", "c")
    book.complete("url", url)
    for number, name in enumerate(("old", "b", "c")):
        book.complete(name, inline(number))
    answers = [book.find(name).answer for name in ("old", "url", "b", "c")]  # type: ignore[union-attr]
    assert answers == [
        ANSWER | {"assets": [{"bytes": 0}, {"bytes": 1}]},
        url,
        inline(1),
        inline(2),
    ]


def test_an_id_is_data(book: Ledger) -> None:
    name = "x' OR '1'='1"
    submit(book, "a", name)
    book.drop(name, GONE)
    assert [book.find(n).status for n in ("a", name)] == ["queued", "canceled"]  # type: ignore[union-attr]
    assert book.find("' OR ''='") is None


def test_a_write_that_fails_leaves_the_ledger_as_it_was(book: Ledger) -> None:
    submit(book, "a")
    with pytest.raises(sqlite3.IntegrityError):
        submit(book, "a")
    submit(book, "b")
    assert [entry.id for entry in book.history(9)] == ["b", "a"]
