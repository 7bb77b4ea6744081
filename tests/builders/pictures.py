"""Pictures to send with a request, and how far two are apart."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def picture(width: int = 96, height: int = 64, colour: tuple[int, int, int] = (220, 40, 40)) -> str:
    """A PNG with a bright square on a colour, as a data URI."""
    pixels = np.full((height, width, 3), colour, np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = (240, 240, 60)
    return data_uri(Image.fromarray(pixels))


def data_uri(image: Image.Image) -> str:
    """A PNG as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


BAD_IMAGE = "data:image/png;base64," + base64.b64encode(b"not an image at all").decode()


def drawn(
    colour: tuple[int, int, int], x: int, y: int = 32, shape: tuple[int, int] = (64, 96)
) -> NDArray[np.uint8]:
    """A square of 24 pixels on white, its centre at (x, y), in a picture of [height, width]."""
    pixels = np.full((*shape, 3), 245, np.uint8)
    pixels[y - 12 : y + 12, x - 12 : x + 12] = colour
    return pixels


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal to noise, dB."""
    error = float(np.mean((a.astype(float) - b.astype(float)) ** 2))
    return 10 * np.log10(255**2 / max(error, 1e-9))


INLINE_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAMUlEQVR4nGP8z0A7wMjA"
    "QEPTRy0YtWDUglELRi0YtWDUglELRi0YtWDUglELRi0AAJ0GAT/8gZ8RAAAAAElFTkSuQmCC"
)
