"""Functions that fail when they are told to."""

from collections.abc import Callable
from typing import Any


def break_pipeline(error: BaseException) -> Callable[..., Any]:
    def broken(*_: Any, **__: Any) -> Any:
        raise error

    return broken


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


def failing_at(call: int, error: BaseException, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but for its n-th call (from 1)."""
    calls = 0

    def sometimes(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return function(*args, **named)

    return sometimes
