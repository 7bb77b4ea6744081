"""Write every generated file, or say which have drifted and which rules are broken.

python -m docs.generate            write, as `make docs` does
python -m docs.generate --check    compare, as `make check` does
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from docs.generate import rules
from docs.generate.registry import GENERATED, Generate
from docs.generate.sources import ROOT

from wan_worker.errors import ConfigInvalid


def write(root: Path, generated: Mapping[str, Generate]) -> None:
    """Write the files that have drifted."""
    for name, generate in generated.items():
        before = _read(root / name)
        text = generate(before)
        if text != before:
            (root / name).write_text(text, "utf-8")


def drifted(root: Path, generated: Mapping[str, Generate]) -> Iterator[str]:
    """A sentence for each file with another text than it should have."""
    for name, generate in generated.items():
        before = _read(root / name)
        try:
            text = generate(before)
        except (ValueError, ConfigInvalid) as problem:
            yield f"{name} can't be written: {problem}"
            continue
        if text != before:
            yield f"{name} has drifted from what it is written from: run `make docs`"


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say what is wrong")
    options = parser.parse_args()
    if not options.check:
        write(ROOT, GENERATED)
        return 0
    problems = list(drifted(ROOT, GENERATED))
    try:
        problems += rules.broken()
    except ValueError as problem:
        problems.append(str(problem))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
