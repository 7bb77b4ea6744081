"""Shapes of the drawn pictures, as SVG. Not covered: what they show (rooms)."""

from html import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
INK = "#24303d"
Point = tuple[int, int]


def wrapped(said: str, room: int) -> list[str]:
    """In lines that fit, in the widest font that a browser may take."""
    ems = dict.fromkeys(" .,:;'!|ijl", 0.33) | dict.fromkeys("frt()-", 0.42)
    ems |= dict.fromkeys("mwMW_", 0.9)
    lines = [""]
    for word in said.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = 13 * sum(ems.get(letter, 0.63) for letter in longer) <= room
        lines[-1:] = [longer] if fits else [lines[-1], word]
    return lines


def rect(x: int, y: int, width: int, height: int, fill: str, more: str = "") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"{more}/>'


def text(x: int, y: int, said: str, size: float = 13, fill: str = INK, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}"{more}>{escape(said)}</text>'


def arrow(points: list[Point], colour: str, width: float = 1.8) -> str:
    path = f"M{points[0][0]} {points[0][1]}"
    for before, (x, y), after in zip(points, points[1:], points[2:], strict=False):
        (ax, ay), (bx, by) = (_near((x, y), other) for other in (before, after))
        path += f"L{ax} {ay}Q{x} {y} {bx} {by}"
    (x, y), (fx, fy) = points[-1], _near(points[-1], points[-2])
    dx, dy = (x > fx) - (x < fx), (y > fy) - (y < fy)
    head = f"M{x} {y}l{-8 * dx - 4 * dy} {-8 * dy - 4 * dx}l{8 * dy} {8 * dx}z"
    return (
        f'<path d="{path}L{fx} {fy}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
        f'<path d="{head}" fill="{colour}"/>'
    )


def _near(corner: Point, other: Point) -> Point:
    """A little away from a corner, towards another point."""
    dx, dy = (max(-6, min(6, there - here)) for here, there in zip(corner, other, strict=True))
    return corner[0] + dx, corner[1] + dy
