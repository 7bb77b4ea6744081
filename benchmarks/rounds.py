"""How every benchmark here measures: ways in turn, medians, and what was measured on.

Ways alternate within one process or one loop, so that what else the machine does hits all of them;
a figure is a median, and a claim is a ratio of two medians of the same rounds.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

Seconds = dict[str, float]


def about() -> dict[str, Any]:
    """The machine, what else it did, when, and on which versions of what is loaded."""
    names = ("torch", "diffusers", "transformers", "boto3")
    versions = {n: str(sys.modules[n].__version__) for n in names if n in sys.modules}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        # A load above the number of cores: others were at work, and seconds are not this code's.
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }


def alternate(
    ways: Mapping[str, Callable[[], Seconds]], rounds: int, warm_up: int = 1
) -> dict[str, list[Seconds]]:
    """Every way once a round, in turn; the first ``warm_up`` rounds are not kept."""
    found: dict[str, list[Seconds]] = {way: [] for way in ways}
    for index in range(warm_up + rounds):
        print(f"round {index + 1} of {warm_up + rounds} ...", file=sys.stderr)
        for way, run in ways.items():
            seconds = run()
            if index >= warm_up:
                found[way].append(seconds)
    return found


def medians(rounds: Sequence[Seconds], digits: int = 4) -> Seconds:
    """Of each stage by itself."""
    stages = dict.fromkeys(stage for seconds in rounds for stage in seconds)
    return {
        stage: round(statistics.median(seconds.get(stage, 0.0) for seconds in rounds), digits)
        for stage in stages
    }


@contextmanager
def clocked(seconds: Seconds, **functions: tuple[Any, str]) -> Iterator[None]:
    """Add to ``seconds[stage]`` what is spent in ``owner.name``, for ``stage=(owner, name)``.

    On a GPU the work is awaited before the clock is read.
    """
    with ExitStack() as stack:
        for stage, (owner, name) in functions.items():
            stack.enter_context(_clocked(seconds, stage, owner, name))
        yield


@contextmanager
def _clocked(seconds: Seconds, stage: str, owner: Any, name: str) -> Iterator[None]:
    original = getattr(owner, name)

    @wraps(original)
    def timed(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            synchronize()
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


def synchronize() -> None:
    """Wait for the GPU, if there is one in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Keep a report beside its script, and show it."""
    text = json.dumps(report, indent=2)
    path.write_text(text + "\n", "utf-8")
    print(text)
