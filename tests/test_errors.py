"""Promises of errors: one tree, stable codes, and a public form that is one line of JSON."""

import json
import re

import pytest

from wan_worker import errors
from wan_worker.errors import (
    Canceled,
    FetchFailed,
    InvalidRequest,
    OutOfMemory,
    StorageFailed,
    UnexpectedError,
    WorkerError,
    public_json,
)

CODES = {
    "client": {
        "INVALID_REQUEST",
        "UNSUPPORTED",
        "URL_BLOCKED",
        "IMAGE_REJECTED",
        "OUTPUT_TOO_LARGE",
    },
    "upstream": {"FETCH_FAILED", "STORAGE_FAILED"},
    "capacity": {"OUT_OF_MEMORY", "DISK_FULL", "DEADLINE"},
    "worker": {
        "MODEL_UNAVAILABLE",
        "MODEL_CORRUPT",
        "GPU_FAULT",
        "GENERATION_FAILED",
        "ENCODE_FAILED",
        "CONFIG_INVALID",
        "INTERNAL",
    },
    "canceled": {"CANCELED"},
}


def leaves(cls: type[WorkerError] = WorkerError) -> list[type[WorkerError]]:
    """The classes that are raised: those without subclasses."""
    children = [c for c in cls.__subclasses__() if c.__module__ == errors.__name__]
    return [leaf for child in children for leaf in leaves(child)] if children else [cls]


def test_codes_and_categories_are_the_published_ones() -> None:
    found: dict[str, set[str]] = {}
    for cls in leaves():
        found.setdefault(cls.category, set()).add(cls.code)
    assert found == CODES


def test_no_two_errors_share_a_code() -> None:
    codes = [cls.code for cls in leaves()]
    assert len(codes) == len(set(codes))


def test_the_tree_drawn_in_the_docstring_is_the_real_one() -> None:
    drawn = dict(re.findall(r"── (\w+) +([A-Z_]+)$", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {cls.__name__: cls.code for cls in leaves()}


def test_no_client_error_is_retryable() -> None:
    assert not any(cls.retryable for cls in leaves(errors.ClientError))


def test_only_memory_and_gpu_faults_ask_for_a_fresh_worker() -> None:
    assert {cls.code for cls in leaves() if cls.refresh_worker} == {"OUT_OF_MEMORY", "GPU_FAULT"}


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        pytest.param(FetchFailed("x"), True, id="upstream-by-default"),
        pytest.param(StorageFailed("x", retryable=False), False, id="permanent-when-said"),
        pytest.param(OutOfMemory("x"), False, id="too-small-stays-too-small"),
        pytest.param(InvalidRequest("x", retryable=True), True, id="raised-when-said"),
        pytest.param(Canceled("x"), False, id="canceled"),
    ],
)
def test_retryable_is_the_classs_answer_unless_said_otherwise(
    error: WorkerError, retryable: bool
) -> None:
    assert error.retryable is retryable
    assert json.loads(public_json(error, "plan"))["retryable"] is retryable


def test_one_errors_retryable_does_not_change_its_class() -> None:
    FetchFailed("x", retryable=False)
    assert FetchFailed("y").retryable is True


def test_public_form_is_compact_ascii_json_with_exactly_the_promised_keys() -> None:
    text = public_json(InvalidRequest('naïve "x"\n\u2028', field="/input/größe"), "plan")
    assert text.isascii()
    assert "\n" not in text
    assert ": " not in text.replace("naïve", "")
    assert json.loads(text) == {
        "code": "INVALID_REQUEST",
        "message": 'naïve "x"\n\u2028',
        "field": "/input/größe",
        "retryable": False,
        "stage": "plan",
    }


def test_an_error_without_a_field_says_null() -> None:
    assert json.loads(public_json(UnexpectedError("x"), "load"))["field"] is None


def test_a_lone_surrogate_in_a_message_still_makes_valid_json() -> None:
    assert public_json(InvalidRequest("\ud800"), "plan").encode()
