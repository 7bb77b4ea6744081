"""Read the header of a safetensors file, and write the file again in bfloat16.

The format is eight bytes of length, a JSON header, then the tensors' bytes end to end. Only the
header is read, without the data, so that a network volume needs one small read. The conversion
works in pieces, so that its memory does not grow with the file or with its largest tensor (umT5's
embedding alone is 4 GB in float32).
Not covered: other file formats; types other than float32 are copied unchanged.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""

PIECE_BYTES: Final = 64 * 1024**2

_SIZES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


@dataclass(frozen=True)
class Tensor:
    """One entry of a header; ``start`` and ``end`` count from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, Tensor]
    """The tensors by name, in the order of their bytes."""
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_header(path: Path, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read and check the header of a safetensors file.

    Args:
        max_bytes: a longer header is refused unread.

    Raises:
        ValueError: the file is no safetensors file, or is not whole.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(max_bytes, size - 8):
            raise ValueError("not a safetensors file, or cut short")
        try:
            raw = json.loads(file.read(length))
        except RecursionError as error:
            raise ValueError("its header is nested too deep") from error
    try:
        metadata = dict(raw.pop("__metadata__", {}))
        unsorted = {name: _tensor(entry, 8 + length) for name, entry in raw.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("its header is not that of a safetensors file") from error
    tensors = dict(sorted(unsorted.items(), key=lambda item: (item[1].start, item[1].end)))
    end = 8 + length
    for tensor in tensors.values():
        if tensor.start != end:
            raise ValueError("its tensors do not lie end to end")
        end = tensor.end
    if end != size:
        raise ValueError(f"{size} bytes long where its header says {end}")
    return Header(tensors, metadata)


def _tensor(entry: Mapping[str, Any], data_start: int) -> Tensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise TypeError("numbers of a header are whole and not negative")
    count = math.prod(shape)
    if end - start != count * _SIZES[entry["dtype"]]:
        raise ValueError("a tensor's bytes do not fit its shape")
    return Tensor(entry["dtype"], shape, data_start + start, data_start + end)


def to_halve(header: Header, keep: frozenset[str]) -> frozenset[str]:
    """Names of the float32 tensors to round to bfloat16: all except modules in ``keep``.

    A module matches as in diffusers' loading: by any whole part of the dotted name.
    """
    return frozenset(
        name
        for name, tensor in header.tensors.items()
        if tensor.dtype == "F32" and keep.isdisjoint(name.split("."))
    )


def to_bfloat16(source: Path, target: Path, keep: frozenset[str]) -> None:
    """Write ``source`` to ``target`` with its float32 tensors rounded to bfloat16.

    Raises:
        ValueError: the source is not a whole safetensors file.
    """
    header = read_header(source)
    halved = to_halve(header, keep)
    # Wider types come first, so that each tensor starts at a multiple of its own width.
    names = sorted(header.tensors, key=lambda name: name in halved)
    entries: dict[str, Any] = {"__metadata__": dict(header.metadata)} if header.metadata else {}
    offset = 0
    for name in names:
        tensor = header.tensors[name]
        size = tensor.nbytes // 2 if name in halved else tensor.nbytes
        entries[name] = {
            "dtype": "BF16" if name in halved else tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(entries, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with source.open("rb") as file, target.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            _copy(file, out, header.tensors[name], name in halved)


def _copy(file: BinaryIO, out: BinaryIO, tensor: Tensor, halve: bool) -> None:
    import torch

    file.seek(tensor.start)
    remaining = tensor.nbytes
    while remaining:
        piece = bytearray(file.read(min(PIECE_BYTES, remaining)))
        if not piece:
            raise ValueError("cut short while it was read")
        remaining -= len(piece)
        if halve:
            rounded = torch.frombuffer(piece, dtype=torch.float32).to(torch.bfloat16)
            out.write(rounded.view(torch.int16).numpy().tobytes())
        else:
            out.write(piece)
