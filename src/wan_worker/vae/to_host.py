"""How do frames get from the GPU to main memory? While the next frames are being made.

A GPU works through a queue. To read a result, the CPU waits until the queue is empty, and the queue
stays empty while the CPU looks at the result. So no chunk is read before the next one is in the
queue. The chunk is copied as uint8 into page-locked memory, and an event says when it has arrived.
On a CPU no copy is needed; the chunk still waits for the next one, so that there is one flow.
Not covered: making the chunks (pipelines.generate). No gain has been measured on a GPU yet.
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
    """A CUDA event, or None if there is no copy."""


def to_host(
    chunks: "Generator[tuple[torch.Tensor, torch.Tensor], None, None]",
) -> "Generator[torch.Tensor, None, None]":
    """Yield the same chunks in main memory, each after the next one has been started.

    Args:
        chunks: uint8 [n, height, width, 3], and a bool: were its pixels finite? Both are on the
            device that made them.

    Raises:
        GenerationFailed: the pixels were not finite.
    """
    with closing(chunks):
        pending = None
        for pixels, finite in chunks:
            transfer = _begin(pixels, finite)
            if pending is not None:
                yield _end(pending)
            pending = transfer
        if pending is not None:
            yield _end(pending)


def _begin(pixels: "torch.Tensor", finite: "torch.Tensor") -> _Transfer:
    import torch

    if not pixels.is_cuda:
        return _Transfer(pixels, finite, None)
    # torch has its own pool of page-locked memory, which reuses the same blocks.
    host = [torch.empty_like(t, device="cpu", pin_memory=True) for t in (pixels, finite)]
    for target, source in zip(host, (pixels, finite), strict=True):
        target.copy_(source, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return _Transfer(host[0], host[1], arrived)


def _end(transfer: _Transfer) -> "torch.Tensor":
    if transfer.arrived is not None:
        transfer.arrived.synchronize()
    if not bool(transfer.finite):
        raise GenerationFailed("The decoder produced NaN; try another seed")
    return transfer.pixels
