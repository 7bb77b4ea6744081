"""Write the generated parts of a file anew, and leave the rest as it is.

In Markdown a table stands between ``<!-- table: NAME (written by make docs) -->`` and
``<!-- end -->``; in other files a block stands between ``# Written by `make docs`: NAME.`` and
``# End.``, indented as it is.
"""

import re
from collections.abc import Callable, Mapping

_TABLE = re.compile(
    r"(<!-- table: (\w+) \(written by make docs\) -->\n).*?(<!-- end -->)", re.DOTALL
)
_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<head># Written by `make docs`: (?P<name>[\w ]+)\.\n)"
    r".*?^(?P=indent)(?P<tail># End\.$)",
    re.DOTALL | re.MULTILINE,
)


def with_tables(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A document with every table written anew.

    Raises:
        ValueError: a table has no place in the text, or a place no table.
    """
    _agree([match[2] for match in _TABLE.finditer(text)], tables)
    return _TABLE.sub(lambda match: f"{match[1]}{tables[match[2]]()}\n{match[3]}", text)


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """A file with every block written anew; a block's lines are indented as its place is.

    Raises:
        ValueError: a block has no place in the text, or a place no block.
    """
    _agree([match["name"] for match in _BLOCK.finditer(text)], blocks)

    def written(match: re.Match[str]) -> str:
        indent = match["indent"]
        lines = [match["head"].rstrip(), *blocks[match["name"]].splitlines(), match["tail"]]
        return "\n".join(f"{indent}{line}" if line else "" for line in lines)

    return _BLOCK.sub(written, text)


def _agree(places: list[str], parts: Mapping[str, object]) -> None:
    if sorted(places) != sorted(parts):
        raise ValueError(
            f"it has places for {places}, and {list(parts)} are to be written into it; add the "
            "place that is missing, or the part to docs/generate"
        )
