"""Which outputs does a request ask for? A prompt and a seed for each.

``num_outputs`` makes several of one prompt, a list of prompts makes one of each; output i uses
seed + i either way. So every output can be made again alone, from what its asset says.
Not covered: how many are made at a time (plan).
"""

import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from wan_worker.errors import InvalidRequest

LARGEST_SEED: Final = 2**63 - 1
DRAWN_SEEDS: Final = 2**32
"""Drawn seeds stay below 2^53, so that JavaScript clients can read them back exactly."""


@dataclass(frozen=True)
class Output:
    """One file to make. Two equal outputs of equal plans are the same picture."""

    prompt: str
    """Empty where an image alone says what to show."""
    seed: int


def read(
    fields: Mapping[str, Any], where: Mapping[str, str], has_picture: bool
) -> tuple[Output, ...]:
    """The outputs in order, at least one.

    Args:
        fields: a request's fields by canonical name, already held against the schema.
        where: JSON pointer that each was given under.
        has_picture: whether there is one to start from: it may stand without a prompt.

    Raises:
        InvalidRequest: no prompt, a blank one, a list beside num_outputs, or seeds that end before
            the outputs do.
    """
    prompts, count = _prompts(fields, where, has_picture), int(fields.get("num_outputs", 1))
    if len(prompts) > 1 and count > 1:
        raise InvalidRequest(
            "A list of prompts makes one output of each; leave num_outputs out, or give one prompt",
            field=where["num_outputs"],
        )
    prompts *= count
    seed = fields.get("seed", -1)
    first = secrets.randbelow(DRAWN_SEEDS) if seed == -1 else int(seed)
    if first + len(prompts) - 1 > LARGEST_SEED:
        raise InvalidRequest(
            f"Output i uses seed + i: for {len(prompts)} outputs the seed must be at most "
            f"{LARGEST_SEED - len(prompts) + 1}",
            field=where["seed"],
        )
    return tuple(Output(prompt, first + index) for index, prompt in enumerate(prompts))


def _prompts(
    fields: Mapping[str, Any], where: Mapping[str, str], has_picture: bool
) -> tuple[str, ...]:
    given = fields.get("prompt")
    if given is None:
        if not has_picture:
            raise InvalidRequest(
                "A prompt is needed unless an image is given", field="/input/prompt"
            )
        return ("",)
    if isinstance(given, str):
        prompts = {where["prompt"]: given}
    else:
        prompts = {f"{where['prompt']}/{index}": prompt for index, prompt in enumerate(given)}
    for pointer, prompt in prompts.items():
        if not any(_is_visible(character) for character in prompt):
            raise InvalidRequest("Must not be blank", field=pointer)
    return tuple(prompts.values())


def _is_visible(character: str) -> bool:
    """Not a separator, a control, or one of the marks of no width that look like nothing."""
    return unicodedata.category(character)[0] not in "ZC"
