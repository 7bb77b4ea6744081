"""Fuzzing in small; ``make fuzz`` does the same by the thousand and writes docs/fuzz.json."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests import fuzz

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "fuzz.json"
VALIDATOR = Draft202012Validator(fuzz.SCHEMA)


def test_a_fuzzed_request_is_planned_or_refused_and_never_planned_when_broken() -> None:
    counts = fuzz.requests(300)
    assert counts["whole"] >= 140
    assert counts["broken"] >= 140
    assert counts["planned"] >= 20  # the whole ones are not all refused


def test_a_fuzzed_image_is_decoded_or_rejected_within_its_memory() -> None:
    # In a process of its own: this one has been larger before.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--images", "200"],
        cwd=ROOT,
        env={"PYTHONPATH": "src:.", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["images"]
    assert counts["decoded"] + counts["rejected"] == 200
    assert counts["decoded"] >= 20
    assert counts["growth_mb"] <= fuzz.MAX_GROWTH / 1e6


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(fuzz.WHOLE, st.sampled_from(sorted(fuzz.FIELDS)), fuzz.JUNK)
def test_a_whole_request_keeps_to_the_schema_and_a_broken_one_does_not(
    whole: dict[str, Any], name: str, junk: Any
) -> None:
    assert VALIDATOR.is_valid(whole)
    finite = not isinstance(junk, float) or math.isfinite(junk)
    if finite and fuzz.breaks(name, junk):
        assert not VALIDATOR.is_valid(whole | {name: junk})


@pytest.mark.parametrize(("name", "count"), [("requests", 20_000), ("images", 5_000)])
def test_the_report_is_of_a_whole_run(name: str, count: int) -> None:
    report = json.loads(REPORT.read_text())[name]
    assert report["asked"] == count
    if name == "images":
        assert report["decoded"] + report["rejected"] == count
        assert report["growth_mb"] <= fuzz.MAX_GROWTH / 1e6
    else:
        assert report["whole"] + report["broken"] >= 0.9 * count
        assert "INTERNAL" not in report
