"""Which outputs does a request ask for? Each has a prompt and a seed.

``num_outputs`` makes several outputs of one prompt. A list of prompts makes one output for each.
In both cases output i uses seed + i. So each output can be made again alone, from what its asset
reports.
Not covered: how many outputs are made at a time (planning.plan).
"""

import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from wan_worker.errors import InvalidRequest

LARGEST_SEED: Final = 2**63 - 1
DRAWN_SEEDS: Final = 2**32
"""Drawn seeds stay below 2^53, so that JavaScript clients read them back exactly."""


@dataclass(frozen=True)
class Output:
    """One file to make. Equal outputs of equal plans give the same picture."""

    prompt: str
    """Empty if an image alone says what to show."""
    seed: int


def read(
    fields: Mapping[str, Any], where: Mapping[str, str], has_picture: bool
) -> tuple[Output, ...]:
    """The outputs in order, at least one.

    Args:
        fields: a request's fields by canonical name; they follow the schema.
        where: JSON pointer under which each field was given.
        has_picture: whether the job starts from a picture; then it needs no prompt.

    Raises:
        InvalidRequest: no prompt, a blank prompt, a list of prompts together with num_outputs, or
            a seed that is too large for so many outputs.
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
    """Not a separator, a control character, or a mark of no width that shows nothing."""
    return unicodedata.category(character)[0] not in "ZC"
