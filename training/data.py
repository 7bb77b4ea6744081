"""Drawn clips and their captions: one shape, one motion, one background, by plain arithmetic.

A scene is a frozen value. `draw` makes frames from it, `caption` and `phrase` make sentences.
Everything is a function of a numpy Generator, so a seed defines a data set.
Not covered: more than one shape, turning, growing, accelerating, leaving the picture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# sRGB, 0-255. Far enough apart to be told by nearest distance after a lossy codec.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (35, 60, 220),
    "yellow": (245, 220, 40),
    "orange": (250, 135, 20),
    "purple": (140, 40, 170),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
}
SHAPE_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
BACKGROUNDS = ("white", "black", "gray", "yellow", "blue", "green")
KINDS = ("circle", "square", "triangle")
# Unit steps (x, y) in picture coordinates: y grows downwards.
MOTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
SPEED = (1.8, 2.2)  # pixels per frame: 9 frames cross about 16 px, 17 frames about 32
# Text to video: the path's middle is near the picture's, so that a caption tells nearly all of the
# clip. That is learned many times sooner than a shape that may be anywhere.
WANDER = 3.0
RADIUS = (10.0, 13.0)  # pixels, half of the bounding box
# Wan's own sample_neg_prompt (wan/configs/shared_config.py), the default of every Wan pipeline.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
HELD_OUT_EVERY = 6  # one combination of six is never trained on


@dataclass(frozen=True)
class Scene:
    """The content of a clip. Lengths are in pixels; centre is the shape's place in frame 0."""

    colour: str
    kind: str
    motion: str
    background: str
    radius: float
    speed: float
    centre: tuple[float, float]


def combinations() -> list[tuple[str, str, str, str]]:
    """All (colour, kind, motion, background). A shape never has its background's colour."""
    return [
        (colour, kind, motion, background)
        for colour in SHAPE_COLOURS
        for kind in KINDS
        for motion in MOTIONS
        for background in BACKGROUNDS
        if colour != background
    ]


def split() -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
    """(trained, held out) combinations: a fixed shuffle, every sixth held out."""
    every = combinations()
    order = np.random.default_rng(20261120).permutation(len(every))
    held = {int(i) for i in order[::HELD_OUT_EVERY]}
    return (
        [c for i, c in enumerate(every) if i not in held],
        [c for i, c in enumerate(every) if i in held],
    )


def place(
    rng: np.random.Generator,
    combination: tuple[str, str, str, str],
    height: int,
    width: int,
    frames: int,
    wander: float = np.inf,
) -> Scene:
    """A scene whose whole path, plus one pixel, lies inside the picture.

    wander: how far the middle of the path may be from the picture's middle, in pixels per axis.
    """
    colour, kind, motion, background = combination
    radius = float(rng.uniform(*RADIUS))
    speed = float(rng.uniform(*SPEED))
    dx, dy = MOTIONS[motion]
    path = speed * (frames - 1)
    margin = radius + 1
    low_x, high_x = margin + max(0.0, -dx * path), width - margin - max(0.0, dx * path)
    low_y, high_y = margin + max(0.0, -dy * path), height - margin - max(0.0, dy * path)
    if low_x > high_x or low_y > high_y:
        raise ValueError(f"{frames} frames at {speed:.1f} px do not fit {width}x{height}")
    middle_x, middle_y = (width - dx * path) / 2, (height - dy * path) / 2
    low_x, high_x = max(low_x, middle_x - wander), min(high_x, middle_x + wander)
    low_y, high_y = max(low_y, middle_y - wander), min(high_y, middle_y + wander)
    centre = (float(rng.uniform(low_x, high_x)), float(rng.uniform(low_y, high_y)))
    return Scene(colour, kind, motion, background, radius, speed, centre)


def coverage(
    kind: str, x: NDArray[np.float64], y: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Share of each pixel inside the shape, 0-1, from the signed distance to its edge.

    x, y: offsets of pixel centres from the shape's centre. Bounding box 2r x 2r for all three;
    area over bounding box: circle 0.785, square 1, triangle (apex up) 0.5.
    """
    if kind == "circle":
        distance = np.hypot(x, y) - radius
    elif kind == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - radius
    else:
        slope = (2 * np.abs(x) - y - radius) / np.sqrt(5.0)
        distance = np.maximum(slope, y - radius)
    return np.clip(0.5 - distance, 0.0, 1.0)


def draw(scene: Scene, height: int, width: int, frames: int) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3], anti-aliased."""
    dx, dy = MOTIONS[scene.motion]
    t = np.arange(frames, dtype=np.float64)[:, None, None]
    x = np.arange(width)[None, None, :] + 0.5 - (scene.centre[0] + dx * scene.speed * t)
    y = np.arange(height)[None, :, None] + 0.5 - (scene.centre[1] + dy * scene.speed * t)
    x, y = np.broadcast_arrays(x, y)
    inside = coverage(scene.kind, x, y, scene.radius)[..., None]
    front = np.array(COLOURS[scene.colour], dtype=np.float64)
    back = np.array(COLOURS[scene.background], dtype=np.float64)
    picture: NDArray[np.uint8] = np.rint(back + (front - back) * inside).astype(np.uint8)
    return picture


def article(word: str) -> str:
    """`word` with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def caption(combination: tuple[str, str, str, str], single: bool = False) -> str:
    """The canonical sentence of a clip, or of a single frame."""
    colour, kind, motion, background = combination
    verb = "" if single else " standing still" if motion == "still" else f" moving {motion}"
    return f"{article(colour)} {kind}{verb} on {article(background)} background"


def any_caption(
    rng: np.random.Generator, combination: tuple[str, str, str, str], single: bool = False
) -> str:
    """A true sentence about the clip, as a user could write it."""
    words = phrase(rng, combination, single).split(" ")
    if rng.random() < 0.08:  # a word that means nothing here
        words.insert(int(rng.integers(len(words) + 1)), junk(rng, 1))
    text = " ".join(words)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.15 else text


def junk(rng: np.random.Generator, words: int) -> str:
    """Random words of random letters."""
    letters = [chr(ord("a") + i) for i in range(26)]
    return " ".join("".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(words))


def no_caption(rng: np.random.Generator) -> str:
    """A text without information on the clip: empty, Wan's own negative prompt, or junk."""
    kind = rng.random()
    if kind < 0.6:
        return ""
    return NEGATIVE_PROMPT if kind < 0.85 else junk(rng, int(rng.integers(1, 4)))


def phrase(rng: np.random.Generator, combination: tuple[str, str, str, str], single: bool) -> str:
    """Half canonical, a quarter in other words and orders, the rest partial."""
    draw_of = rng.random()
    if draw_of < 0.55:
        return caption(combination, single=single and rng.random() < 0.7)
    colour, kind, motion, background = combination
    if background == "gray" and rng.random() < 0.3:
        background = "grey"
    thing = f"{colour} {kind}"
    verbs: tuple[str, ...]
    if motion == "still":
        verbs = ("standing still", "not moving", "static", "stands still", "at rest", "still")
    else:
        extra = "wards" if motion in ("up", "down") else ""
        side = f"to the {motion}" if motion in ("left", "right") else motion
        verbs = (
            f"moving {motion}",
            f"moves {motion}",
            f"moving {side}",
            f"going {motion}{extra}",
            f"moves {motion}{extra}",
        )
    verb = "" if single and rng.random() < 0.7 else str(rng.choice(verbs))
    parts = [article(thing), verb, f"on {article(background)} background"]
    if draw_of < 0.78:  # phrases in another order
        style = int(rng.integers(6))
        if style == 0:
            words = [parts[2] + ",", parts[0], parts[1]]
        elif style == 1:
            words = [parts[0], parts[2], parts[1]]
        elif style == 2:
            words = [f"{article(background)} background with {article(thing)}", parts[1]]
        elif style == 3:
            words = ["the", thing, verb, f"on the {background} background"]
        elif style == 4:
            bits = [bit for bit in (thing, verb, f"{background} background") if bit]
            words = [", ".join(bits[int(i)] for i in rng.permutation(len(bits)))]
        else:
            words = ["a video of" if not single else "a picture of", *parts]
        return " ".join(word for word in words if word)
    partial: tuple[list[str], ...] = (
        [article(colour) + " shape", colour],
        [article(kind), kind],
        [verb or kind],
        [parts[2], f"{background} background"],
        [article(thing), thing],
        [f"{article(thing)} {verb}".strip(), f"{thing} {verb}".strip()],
        [f"{article(thing)} {parts[2]}", f"{thing} {parts[2]}"],
        [f"{article(kind)} {verb}".strip()],
    )
    options = partial[int(rng.integers(len(partial)))]
    return options[int(rng.integers(len(options)))]
