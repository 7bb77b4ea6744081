"""Which tensors does Real-ESRGAN x4plus have? Read, check, write and convert its file.

The upscaler's network is RRDBNet (Wang et al., ESRGAN, arXiv:1809.00219, section 3.1) as in
Real-ESRGAN (arXiv:2107.10833). The published checkpoint has 64 features, 23 blocks and a growth of
32. A smaller one with the same tensor names works the same way: the tiny weights are one.

Promises: a file with a missing tensor, an extra tensor or another shape is refused. A serving
worker reads only safetensors. A published pickle is opened only with ``weights_only``.
Not covered: the network itself (media.rrdbnet) and downloading (download).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

SCALE: Final = 4
WEIGHTS: Final = "model.safetensors"
CONFIG: Final = "config.json"


@dataclass(frozen=True)
class Shape:
    """The content of config.json. The defaults are those of RealESRGAN_x4plus.pth."""

    num_feat: int = 64
    num_block: int = 23
    num_grow_ch: int = 32

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape by its name in the published file."""
        return {
            f"{name}.{part}": (wide, narrow, 3, 3) if part == "weight" else (wide,)
            for name, narrow, wide in self._convolutions()
            for part in ("weight", "bias")
        }

    def _convolutions(self) -> Iterator[tuple[str, int, int]]:
        """Name, channels in and channels out of each 3x3 convolution."""
        feat, grow = self.num_feat, self.num_grow_ch
        yield "conv_first", 3, feat
        for block in range(self.num_block):
            for dense in (1, 2, 3):
                for index in range(1, 6):
                    narrow = feat + (index - 1) * grow
                    wide = grow if index < 5 else feat
                    yield f"body.{block}.rdb{dense}.conv{index}", narrow, wide
        for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr"):
            yield name, feat, feat
        yield "conv_last", feat, 3

    @property
    def reach(self) -> int:
        """Pixels of the input on each side that one output pixel can depend on.

        Each convolution at the input's size adds one. Those after a doubling add less than two
        together (1/2 + 1/4 + 1/4 + 1/4, and the position inside the doubled pixel).
        """
        return 1 + 15 * self.num_block + 1 + 2

    @property
    def values_per_pixel(self) -> int:
        """Numbers in memory at the peak, for each pixel of the input.

        The peak is in the last convolutions: their input, its activation and their output each
        have ``num_feat`` channels on 4 x 4 pixels. The dense blocks hold far less.
        """
        return 3 * SCALE**2 * self.num_feat


@dataclass(frozen=True)
class Parameters:
    """The network's parameters, by the names of the published file."""

    shape: Shape
    tensors: "Mapping[str, torch.Tensor]"

    @property
    def dtype(self) -> "torch.dtype":
        return self.tensors["conv_first.weight"].dtype

    @property
    def device(self) -> "torch.device":
        return self.tensors["conv_first.weight"].device


def load(folder: Path, dtype: "torch.dtype", device: str) -> Parameters:
    """Read the parameters from their folder in the store.

    Raises:
        OSError, ValueError: the files are missing, or belong to another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        shape = Shape(**json.loads((folder / CONFIG).read_text("utf-8")))
        tensors = load_file(folder / WEIGHTS, device=device)
    except (SafetensorError, TypeError) as error:
        raise ValueError("not the files of an upscaler") from error
    check(tensors, shape)
    return Parameters(shape, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def check(tensors: "Mapping[str, torch.Tensor]", shape: Shape) -> None:
    """Raise ValueError unless these are exactly the network's tensors."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shape.tensors():
        wrong = found.items() ^ shape.tensors().items()
        raise ValueError(f"{len({name for name, _ in wrong})} tensors are not an RRDBNet's")


def save(tensors: "Mapping[str, torch.Tensor]", shape: Shape, folder: Path) -> None:
    """Write the two files that ``load`` reads."""
    from safetensors.torch import save_file

    check(tensors, shape)
    plain = {name: tensors[name].float().contiguous() for name in shape.tensors()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(asdict(shape), indent=2) + "\n", "utf-8")


def convert(published: Path, folder: Path, shape: Shape | None = None) -> None:
    """Turn a published checkpoint (a pickle with ``params_ema``) into config and safetensors.

    Raises:
        ValueError: it is no such checkpoint, or it tries to run code.
    """
    import pickle

    import torch

    try:
        content = torch.load(published, map_location="cpu", weights_only=True)
        save(content["params_ema"], shape or Shape(), folder)
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no checkpoint of plain tensors ({type(error).__name__})") from error
