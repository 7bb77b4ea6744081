"""What did the text encoder make of a text? It is kept from job to job, within a bound of bytes.

A text's embedding depends on the text, on the encoder and on the type that it computes in. It
depends on nothing else of a job: LoRAs change the transformers alone, a language model's rewriting
is another text, and each text is encoded by itself. So a kept embedding is the very tensor that
encoding the text again would give. Wan's default negative prompt comes with nearly every job.

Promises: the kept bytes stay within the bound, and the least recently used text goes first;
embeddings are in main memory, never on the GPU. One thread at a time may use them (the GPU lock).
Not covered: the encoding itself (pipelines.generate).
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import torch

MAX_BYTES: Final = 128 * 1024**2
"""About 200 prompts of 80 tokens, each token 4096 numbers of two bytes (umT5-XXL). More prompts
than come between two uses of a repeated text, and a hundredth of the encoder's weights."""


class Key(NamedTuple):
    """All that an embedding depends on."""

    text: str
    encoder: str
    """Name of the text encoder's component."""
    dtype: str
    """Type that the encoder computes in."""


class Embeddings:
    """Embeddings by text, encoder and type: the last used ones, within a bound."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, tuple[torch.Tensor, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def knows(self, text: str, encoder: str) -> bool:
        """Is there one, in any type? Any thread may ask: the order does not change."""
        return any((key.text, key.encoder) == (text, encoder) for key in tuple(self._kept))

    def get(self, key: Key) -> "torch.Tensor | None":
        """The embedding [1, tokens, text_dim], as it was put, in main memory; None if not kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        rows, tokens = self._kept[key]
        whole = rows.new_zeros(1, tokens, rows.shape[1])
        whole[0, : len(rows)] = rows
        return whole

    def put(self, key: Key, embedding: "torch.Tensor") -> None:
        """Keep an embedding [1, tokens, text_dim], unless it is larger than the bound.

        One with NaN or infinity is not kept either: a fault in one job would fail every later one,
        because nearly all have the default negative prompt. Zeros follow a text's own tokens. They
        are most of the 512 and are not stored.
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
