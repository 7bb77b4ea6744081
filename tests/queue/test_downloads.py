"""Downloads whose process does what none should: each ends, and the next one can begin."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from wan_worker.queue.downloads import Downloads

MODEL, OTHER = "wan2.1-t2v-1.3b", "wan2.1-t2v-14b"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def play(downloads: Downloads, scene: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30):
            await scene()
            await downloads.stop()

    asyncio.run(run())


@pytest.mark.parametrize(
    "command",
    [
        ("/nobody/has/this",),
        python("import time; print('Loading: 100%', flush=True); time.sleep(100)"),
        python("""print('{"say": "bytes"}')"""),
        python("print('x' * 1_000_000)"),
        python("raise SystemExit(3)"),
    ],
    ids=["no-process", "no-json", "no-message", "too-long", "ends"],
)
def test_a_download_whose_process_fails_has_failed_and_another_can_begin(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    downloads = Downloads(tmp_path, command)

    async def scene() -> None:
        failed = downloads.start(MODEL)
        while failed.status == "downloading":
            await asyncio.sleep(0.02)
        assert (failed.status, failed.error and failed.error["code"]) == ("failed", "INTERNAL")
        assert failed.ended_at is not None
        assert downloads.start(OTHER).status == "downloading"

    play(downloads, scene)


def test_stopping_ends_a_download_that_is_under_way(tmp_path: Path) -> None:
    downloads = Downloads(tmp_path, python("import time; time.sleep(100)"))

    async def scene() -> None:
        downloads.start(MODEL)
        await asyncio.sleep(0)  # the process is being made, and nobody has it yet

    play(downloads, scene)
    assert [each.status for each in downloads.known()] == ["canceled"]
