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

ROOT = Path(__file__).resolve().parents[2]


def write(root: Path, generated: Mapping[str, Generate]) -> None:
    """Write what has drifted."""
    for name, generate in generated.items():
        before = _read(root / name)
        text = generate(before)
        if text != before:
            (root / name).write_text(text, "utf-8")


def drifted(root: Path, generated: Mapping[str, Generate]) -> Iterator[str]:
    """A sentence for each file that does not hold what it should."""
    for name, generate in generated.items():
        before = _read(root / name)
        try:
            text = generate(before)
        except ValueError as problem:
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
    problems = [*drifted(ROOT, GENERATED), *rules.broken()]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
