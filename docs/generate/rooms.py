"""Draws docs/rooms.svg: the code as a house with one floor for each layer.

The floors come from pyproject.toml, the arrows from the imports, the questions from docstrings.
Numbers of lines are rounded, so that the picture does not change with every edit of the code.
"""

import ast
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path

import grimp
from docs.generate.svg import FONT, Point, arrow, rect, text, wrapped

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "wan_worker"
ENTRY = "handler.py"  # RunPod's entry: it is beside the package, and drawn on the top floor

WIDTH, WALL, LEFT, RIGHT, ROOF, GAP, PAD, LINE, LANE = 960, 22, 84, 876, 112, 20, 12, 16, 15
QUIET, PLASTER, STAIRS, EDGE, STEP = "#5f6a76", "#f3ecdf", "#e8decb", "#b9ab90", "#857d6c"
PACKAGED, ALONE, GLASS = "#ffffff", "#e6eef7", "#8fb4d6"
LANES = ("#2f669f", "#b3581f", "#3f7a45", "#7a5599", "#a2405b")


@dataclass(frozen=True)
class Room:
    """A package, or a module outside of packages, and where it is drawn."""

    name: str
    question: str
    lines: tuple[int, ...]  # of each of its modules
    packaged: bool
    floor: int = 0
    x: int = 0
    y: int = 0
    width: int = 0
    height: int = 0

    def beside(self, side: int) -> bool:
        """Is it at the left stairs (0), or at the right ones (1)?"""
        return self.x == LEFT if side == 0 else self.x + self.width == RIGHT


def read(name: str) -> Room:
    folder = PACKAGE / name
    alone = ROOT / ENTRY if name == ENTRY else folder.with_suffix(".py")
    paths = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"] or [alone]
    face = folder / "__init__.py" if folder.is_dir() else alone
    first = (ast.get_docstring(ast.parse(face.read_text("utf-8"))) or "").splitlines()[0]
    question = first.split("? ")[0] + "?" if "? " in first else first.split(". ")[0].rstrip(".")
    sizes = tuple(len(path.read_text("utf-8").splitlines()) for path in paths)
    return Room(name, question.replace("`", ""), sizes, folder.is_dir())


def layers() -> list[list[str]]:
    """The names on each floor, from the top down."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    (contract,) = (found for found in linter["contracts"] if found["type"] == "layers")
    floors = [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
    return [[*floors[0], ENTRY], *floors[1:]]


def imports(names: list[str]) -> dict[str, set[str]]:
    """The rooms that each room imports from, without those that it reaches through another."""
    graph = grimp.build_graph("wan_worker", cache_dir=None, exclude_type_checking_imports=True)
    found: dict[str, set[str]] = {name: set() for name in names}
    for module in graph.modules - {"wan_worker"}:
        used = graph.find_modules_directly_imported_by(module)
        own = module.split(".")[1]
        found[own] |= {name.split(".")[1] for name in used if "." in name} - {own}
    for node in ast.walk(ast.parse((ROOT / ENTRY).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wan_worker"):
            inside = (node.module or "").split(".")[1:2]
            found[ENTRY] |= set(inside or [alias.name for alias in node.names])

    @cache
    def reached(name: str) -> frozenset[str]:
        return frozenset(found[name]).union(*map(reached, found[name]))

    return {
        name: {other for other in used if not any(other in reached(via) for via in used)}
        for name, used in found.items()
    }


def placed(floors: list[list[str]], links: dict[str, set[str]]) -> dict[str, Room]:
    floor_of = {name: floor for floor, names in enumerate(floors) for name in names}
    far = [(a, b) for a, used in links.items() for b in used if floor_of[b] > floor_of[a] + 1]
    rooms, y = {}, ROOF + GAP
    for floor, names in enumerate(floors):
        # The room with the most imports to or from far floors is beside the left stairs.
        names = sorted(names, key=lambda name: (-sum(name in pair for pair in far), name))
        edges = [LEFT + (RIGHT - LEFT + GAP) * n // len(names) for n in range(len(names) + 1)]
        width = (RIGHT - LEFT + GAP) // len(names) - GAP
        here = [read(name) for name in names]
        height = 30 + LINE * max(len(wrapped(room.question, width - 2 * PAD)) for room in here)
        for room, x, end in zip(here, edges, edges[1:], strict=False):
            place = {"floor": floor, "x": x, "y": y, "width": end - GAP - x, "height": height}
            rooms[room.name] = replace(room, **place)
        y += height + GAP
    return rooms


def box(room: Room) -> Iterator[str]:
    """One room: its name, a window for each module, its size, its question."""
    fill = PACKAGED if room.packaged else ALONE
    yield rect(room.x, room.y, room.width, room.height, fill, f' rx="4" stroke="{EDGE}"')
    yield text(room.x + PAD, room.y + 19, room.name, 15, more=' font-weight="700"')
    for number, line in enumerate(wrapped(room.question, room.width - 2 * PAD)):
        yield text(room.x + PAD, room.y + 37 + LINE * number, line)
    x = room.x + 112
    for lines in room.lines:
        pane = 4 * max(1, round(lines / 50))
        yield rect(x, room.y + 8, pane, 12, GLASS)
        x += pane + 3
    total = sum(room.lines)
    step = 100 if room.packaged else 50 if total >= 100 else 10
    size = f"{round(total / step) * step:,} lines"
    said = f"{len(room.lines)} modules, {size}" if room.packaged else size
    yield text(room.x + room.width - PAD, room.y + 19, said, 11.5, QUIET, ' text-anchor="end"')


def arrows(rooms: dict[str, Room], links: dict[str, set[str]]) -> Iterator[str]:
    """Straight down to the next floor; to lower floors by the stairs, one lane for each start."""
    ways = []
    for room in rooms.values():
        used = sorted((rooms[name] for name in links[room.name]), key=lambda at: (at.floor, at.x))
        for below in (at for at in used if at.floor == room.floor + 1):
            x = max(room.x, below.x) + min(room.width, below.width) // 2
            yield arrow([(x, room.y + room.height), (x, below.y)], STEP)
        if far := [below for below in used if below.floor > room.floor + 1]:
            ways.append((far[-1].floor - room.floor, room.floor, room.x, room, far))
    lanes: dict[Point, list[Point]] = defaultdict(list)
    doors: Counter[tuple[str, int]] = Counter()
    # The shortest come first: then they are nearest to the rooms and cross the fewest others.
    for length, first, _, room, far in sorted(ways, key=lambda way: way[:3]):
        last = first + length
        free = [
            next(n for n in count() if all(last <= a or b <= first for a, b in lanes[side, n]))
            for side in (0, 1)
        ]
        near = [(room.beside(s), sum(at.beside(s) for at in far), -free[s]) for s in (0, 1)]
        side = near.index(max(near))
        lanes[side, free[side]].append((first, last))
        wall, away = ((LEFT, -1), (RIGHT, 1))[side]
        lane, floor = wall + away * (12 + LANE * free[side]), room.y + room.height
        middle = room.x + room.width // 2
        between = [(middle, floor), (middle, floor + 8)]
        start = [(wall, floor - 10)] if room.beside(side) else between
        routes = []
        for below in far:
            doors[below.name, side] += 1
            end = [(wall, below.y + 1 + 11 * doors[below.name, side])]
            if not below.beside(side):
                x = below.x + below.width // 2 + away * below.width // 4
                end = [(x, below.y - 12), (x, below.y)]
            routes.append([*start, (lane, start[-1][1]), (lane, end[0][1]), *end])
        yield from (arrow(route, STAIRS, 6) for route in routes)  # it passes over other lanes
        yield from (arrow(route, LANES[free[side] % len(LANES)]) for route in routes)


def legend(y: int) -> Iterator[str]:
    for x, fill, said in ((WALL, PACKAGED, "a package"), (WALL + 112, ALONE, "one module")):
        yield rect(x, y - 12, 18, 15, fill, f' rx="3" stroke="{EDGE}"')
        yield text(x + 26, y, said, 12, QUIET)
    yield rect(WALL + 234, y - 11, 16, 12, GLASS)
    yield text(WALL + 258, y, "one module; wider: more lines", 12, QUIET)
    yield arrow([(WALL + 492, y - 4), (WALL + 520, y - 4)], STEP)
    yield text(WALL + 528, y, "imports (left out where other arrows lead)", 12, QUIET)


def draw() -> str:
    """The picture."""
    floors = layers()
    links = imports([name for names in floors for name in names])
    rooms = placed(floors, links)
    ground = max(room.y + room.height for room in rooms.values()) + GAP
    high, tall, packages = ground + 58, ground - ROOF, sum(r.packaged for r in rooms.values())
    told = f"{packages} packages, {len(rooms) - packages - 1} modules beside them; imports go down"
    centred = ' text-anchor="middle"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}" '
        f'font-family="{FONT}" role="img" aria-label="The code as a house of {packages} rooms">',
        rect(0, 0, WIDTH, high, "#fbf9f4", ' rx="10"'),
        rect(WIDTH - 236, 26, 34, 60, "#8d5a4a"),
        f'<path d="M4 {ROOF}L{WIDTH // 2} 12L{WIDTH - 4} {ROOF}z" fill="#9c5643"/>',
        rect(WALL, ROOF, WIDTH - 2 * WALL, tall, PLASTER, f' stroke="{EDGE}"'),
        *(rect(x, ROOF, LEFT - WALL - 4, tall, STAIRS) for x in (WALL, RIGHT + 4)),
        rect(0, ground, WIDTH, 6, "#7d8f69"),
        text(WIDTH // 2, 72, "src/wan_worker", 20, "#ffffff", f' font-weight="700"{centred}'),
        text(WIDTH // 2, 95, told, 13, "#fdf3ee", centred),
        *(line for room in rooms.values() for line in box(room)),
        *arrows(rooms, links),
        *legend(ground + 36),
        "</svg>\n",
    ])  # fmt: skip
