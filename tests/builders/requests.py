"""Fields of requests that several tests send, and what the trained tiny Wan draws of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training.measure import Measured

from tests.builders.files import path_of, read
from tests.conftest import QUICK, Answer

Serve = Callable[..., Answer]


CLIP = {
    "size": "96x64",
    "num_frames": 17,
    "num_inference_steps": 16,
    "guidance_scale": 5.0,
    "flow_shift": 3.0,
    "seed": 1,
}
PROMPT = "a red circle moving right on a white background"


def video(serve: Serve, prompt: str, **changes: Any) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] of the delivered file."""
    answer = serve(CLIP | {"prompt": prompt} | changes)
    assert "error" not in answer, answer
    return read(path_of(answer["assets"][0]["url"])).frames


def said(found: Measured) -> tuple[str | None, ...]:
    return (found.colour, found.kind, found.motion, found.background)


T2V = {"model": "wan2.1-t2v-1.3b"}
CYAN = {"source": "cyan"}
ENHANCED = {"enhance_prompt": True, "prompt": "a blue square"}
LONG = QUICK | {"num_inference_steps": 100, "num_frames": 81, "size": "128x96"}
"""A request that takes several seconds."""
SLOW = QUICK | {"size": "416x240", "num_frames": 9, "num_inference_steps": 100}
"""Denoises for tens of seconds: long enough to be stopped in the middle."""

MANY_STEPS = QUICK | {"num_inference_steps": 100}
"""Denoises for two seconds, in steps that are cheap: for a job that is made to its end."""
