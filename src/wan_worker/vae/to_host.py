"""How do frames get from where they are made to main memory? While the next ones are being made.

A GPU works through a queue: whoever asks for a result waits until the queue is empty, and the queue
stays empty while the result is looked at. So nothing is asked of a chunk before the next one is in
the queue: it crosses as uint8 into page-locked memory, and an event says when it is there.
On a CPU a chunk is there when it is made, and waits for the next one all the same: one flow.
Not covered: what makes the chunks (generate); a GPU has not yet been seen to gain by this.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wan_worker.errors import GenerationFailed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Transfer:
    pixels: "torch.Tensor"
    finite: "torch.Tensor"
    arrived: Any
    """A CUDA event, or None where nothing crosses."""


def to_host(
    chunks: "Generator[tuple[torch.Tensor, torch.Tensor], None, None]",
) -> "Generator[torch.Tensor, None, None]":
    """The same chunks in main memory, each handed out when the next one has been begun.

    Args:
        chunks: uint8 [n, height, width, 3], and a bool: were its pixels finite? Both where they
            were made.

    Raises:
        GenerationFailed: they were not.
    """
    with closing(chunks):
        waiting = None
        for pixels, finite in chunks:
            begun = _begin(pixels, finite)
            if waiting is not None:
                yield _end(waiting)
            waiting = begun
        if waiting is not None:
            yield _end(waiting)


def _begin(pixels: "torch.Tensor", finite: "torch.Tensor") -> _Transfer:
    import torch

    if not pixels.is_cuda:
        return _Transfer(pixels, finite, None)
    # From torch's own pool of page-locked memory, which hands out the same pieces again.
    host = [torch.empty_like(t, device="cpu", pin_memory=True) for t in (pixels, finite)]
    for target, source in zip(host, (pixels, finite), strict=True):
        target.copy_(source, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return _Transfer(host[0], host[1], arrived)


def _end(crossing: _Transfer) -> "torch.Tensor":
    if crossing.arrived is not None:
        crossing.arrived.synchronize()
    if not bool(crossing.finite):
        raise GenerationFailed("The decoder produced NaN; try another seed")
    return crossing.pixels
