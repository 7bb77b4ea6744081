"""Frames cross to main memory while the next ones are made."""

from collections.abc import Generator

import pytest
import torch

from wan_worker.errors import GenerationFailed
from wan_worker.vae import to_host


def made(log: list[str], broken: int = -1) -> Generator[tuple[torch.Tensor, torch.Tensor]]:
    try:
        for index in range(3):
            log.append(f"made {index}")
            yield torch.full((1, 2, 2, 3), index, dtype=torch.uint8), torch.tensor(index != broken)
    finally:
        log.append("closed")


def test_a_chunk_is_handed_out_when_the_next_one_has_been_begun() -> None:
    log: list[str] = []
    for chunk in to_host.to_host(made(log)):
        log.append(f"out {int(chunk[0, 0, 0, 0])}")
    assert log == ["made 0", "made 1", "out 0", "made 2", "out 1", "closed", "out 2"]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_chunk_that_is_not_finite_is_never_handed_out(broken: int) -> None:
    got: list[int] = []
    with pytest.raises(GenerationFailed, match="NaN"):
        got.extend(int(chunk[0, 0, 0, 0]) for chunk in to_host.to_host(made([], broken)))
    assert got == list(range(broken))


def test_whoever_makes_the_chunks_is_closed_with_their_reader() -> None:
    log: list[str] = []
    chunks = to_host.to_host(made(log))
    next(chunks)
    chunks.close()
    assert log == ["made 0", "made 1", "closed"]
