"""The table of promises names tests that there are, and its page is up to date."""

import json

import pytest

from tests import promises_page
from tests.promises import PROMISES, SECTIONS, Promise


def test_every_row_is_there_once_and_in_order() -> None:
    assert [promise.row for promise in PROMISES] == list(range(1, 103))
    assert [row for rows in SECTIONS.values() for row in rows] == list(range(1, 103))


def test_every_test_that_is_named_exists() -> None:
    named = {test for promise in PROMISES for test in promise.tests}
    assert named - set(promises_page.known_tests()) == set()


def test_a_row_names_a_test_once() -> None:
    assert [p.row for p in PROMISES if len(set(p.tests)) < len(p.tests)] == []


def test_a_row_without_a_test_says_what_is_missing() -> None:
    assert [p.row for p in PROMISES if not p.tests and not p.missing] == []


def test_the_page_is_up_to_date() -> None:
    # Else: python -m tests.promises_page
    assert promises_page.PAGE.read_text("utf-8") == promises_page.page(promises_page.read_results())


def test_the_results_are_of_tests_that_are_named() -> None:
    named = {test for promise in PROMISES for test in promise.tests}
    assert set(json.loads(promises_page.RESULTS.read_text())) <= named


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({}, "not run"),
        ({"a": ("passed", "2026-01-02")}, "not run"),
        ({"a": ("passed", "2026-01-02"), "b": ("passed", "2026-01-01")}, "passed 2026-01-01"),
        ({"a": ("failed", "2026-01-02"), "b": ("passed", "2026-01-03")}, "failed 2026-01-02"),
        ({"a": ("skipped", "2026-01-02"), "b": ("passed", "2026-01-03")}, "skipped 2026-01-02"),
    ],
)
def test_a_rows_result_is_its_worst(results: promises_page.Results, said: str) -> None:
    assert promises_page.last_result(Promise(1, "", "", ("a", "b")), results) == said


def test_a_row_is_shown_in_part_while_something_is_missing() -> None:
    assert promises_page.state(Promise(1, "", "", ("a",))) == "shown"
    assert promises_page.state(Promise(1, "", "", ("a",), "more")) == "in part"
    assert promises_page.state(Promise(1, "", "", (), "all")) == "open"
    assert promises_page.last_result(Promise(1, "", "", (), "all"), {}) == "–"
