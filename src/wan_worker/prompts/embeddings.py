"""What did the text encoder make of a text? Kept from job to job, within a bound of bytes.

A text's embedding depends on the text, on the encoder and on the type it computes in, and on
nothing else of a job: LoRAs are put on the transformers alone, a language model's rewriting is
another text, and each text is encoded by itself. So a kept one is the very tensor that encoding the
text again would give. Wan's default negative prompt comes with nearly every job.

Promises: the bytes that are kept stay within the bound, the least recently used text goes first;
they are in main memory, never on the GPU. For one thread at a time (the GPU lock).
Not covered: the encoding itself (generate).
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import torch

MAX_BYTES: Final = 128 * 1024**2
"""About 200 prompts of 80 tokens at umT5-XXL's 4096 numbers of two bytes: more than come between
two uses of a text that comes back, and a hundredth of the encoder's weights."""


class Key(NamedTuple):
    """All that an embedding depends on."""

    text: str
    encoder: str
    """Name of the text encoder's component."""
    dtype: str
    """What it computes in."""


class Embeddings:
    """Embeddings by text, encoder and type: those used last, within a bound."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, tuple[torch.Tensor, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def knows(self, text: str, encoder: str) -> bool:
        """Is there one, in whichever type? For any thread: nothing is moved to the end."""
        return any((key.text, key.encoder) == (text, encoder) for key in tuple(self._kept))

    def get(self, key: Key) -> "torch.Tensor | None":
        """[1, tokens, text_dim] in main memory, as it was put; None where it is not kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        rows, tokens = self._kept[key]
        whole = rows.new_zeros(1, tokens, rows.shape[1])
        whole[0, : len(rows)] = rows
        return whole

    def put(self, key: Key, embedding: "torch.Tensor") -> None:
        """Keep an embedding [1, tokens, text_dim]; one larger than the bound is not kept.

        Nor is one with NaN or infinity: a fault in one job would fail every later one, the default
        negative prompt being in nearly all. What follows a text's own tokens is zeros, most of the
        512: they are not stored.
        """
        self._drop(key)
        used = embedding[0].ne(0).any(dim=-1).nonzero()
        count = int(used[-1]) + 1 if len(used) else 0
        rows = embedding[0, :count].detach().to("cpu", copy=True)
        if rows.nbytes > self._max_bytes or not bool(rows.isfinite().all()):
            return
        self._kept[key] = (rows, embedding.shape[1])
        self.nbytes += rows.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        if key in self._kept:
            self.nbytes -= self._kept.pop(key)[0].nbytes
