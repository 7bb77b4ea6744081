"""Write ``docs/promises.md`` from the table of promises and the last results of their tests.

python -m tests.promises_page              write the page
python -m tests.promises_page --run        run the tests of every row first, keep the results
python -m tests.promises_page --run 32-46  of these rows only
"""

import argparse
import ast
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.promises import PROMISES, SECTIONS, Promise

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
PAGE = ROOT / "docs" / "promises.md"
RESULTS = ROOT / "docs" / "promises.json"

Results = Mapping[str, tuple[str, str]]
"""Test to its last outcome (passed, failed, skipped) and the day of that."""


def known_tests() -> Iterator[str]:
    """Every test function there is, as ``file::name``."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(TESTS)}::{node.name}"


def state(promise: Promise) -> str:
    """Whether a row is shown: in whole, in part or not at all."""
    if not promise.tests:
        return "open"
    return "in part" if promise.missing else "shown"


def last_result(promise: Promise, results: Results) -> str:
    """The worst of its tests' last outcomes, and the day of the oldest of them."""
    if not promise.tests:
        return "–"
    found = [results.get(test, ("not run", "")) for test in promise.tests]
    worst = next((o for o in ("failed", "not run", "skipped") if o in dict(found)), "passed")
    days = [day for outcome, day in found if outcome == worst and day]
    return f"{worst} {min(days)}" if days else worst


def page(results: Results) -> str:
    """``docs/promises.md``."""
    states = [state(promise) for promise in PROMISES]
    counts = {name: states.count(name) for name in ("shown", "in part", "open")}
    lines = [
        "# What goes wrong, and what the worker does then",
        "",
        "Written by `make promises` from `tests/promises.py`; do not edit. Promised in every row:",
        "no temp file is left, no secret is in a log or an answer, and the next job succeeds.",
        "",
        f"{len(PROMISES)} promises: {counts['shown']} shown by tests, {counts['in part']} in part, "
        f"{counts['open']} open.",
    ]
    for section, rows in SECTIONS.items():
        lines += ["", f"## {section}", "", "| | what | promise | shown by | last result |"]
        lines += ["|---|---|---|---|---|"]
        for promise in (p for p in PROMISES if p.row in rows):
            shown = "<br>".join(f"`{test}`" for test in promise.tests)
            if promise.missing:
                shown += f"{'<br>' if shown else ''}*not yet: {promise.missing}*"
            lines.append(
                f"| {promise.row} | {promise.fault} | {promise.answer} | {shown} "
                f"| {last_result(promise, results)} |"
            )
    return "\n".join(lines) + "\n"


def read_results() -> Results:
    if not RESULTS.exists():
        return {}
    return {test: (o, day) for test, (o, day) in json.loads(RESULTS.read_text()).items()}


class Recorder:
    """A pytest plugin that keeps the worst outcome of each test function."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = report.nodeid.partition("[")[0].removeprefix("tests/")
        order = ("passed", "skipped", "failed")
        before = self.outcomes.get(test, "passed")
        self.outcomes[test] = max(before, report.outcome, key=order.index)


def run(rows: range) -> Results:
    """Run the tests of these rows; the results so far with theirs in place."""
    import pytest

    tests = sorted({test for p in PROMISES if p.row in rows for test in p.tests})
    recorder = Recorder()
    pytest.main(["-p", "no:cacheprovider", *(f"tests/{t}" for t in tests)], plugins=[recorder])
    today = datetime.now(UTC).date().isoformat()
    new = {test: (outcome, today) for test, outcome in recorder.outcomes.items()}
    named = {test for promise in PROMISES for test in promise.tests}
    return {test: o for test, o in sorted({**read_results(), **new}.items()) if test in named}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="?", const="1-102", metavar="ROWS", help="such as 32-46")
    options = parser.parse_args()
    results = read_results()
    if options.run:
        first, _, last = options.run.partition("-")
        results = run(range(int(first), int(last or first) + 1))
        lines = (f"{json.dumps(test)}: {json.dumps(o)}" for test, o in results.items())
        RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    PAGE.write_text(page(results), "utf-8")
    return int(any(outcome == "failed" for outcome, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
