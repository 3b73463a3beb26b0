"""A curve in braille dots: two columns and four rows of dots in each character."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

Point = tuple[float, float]

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK = 0x2800


@dataclass(frozen=True)
class Curve:
    """Points by ascending x, with the style they are drawn in."""

    points: Sequence[Point]
    style: str
    is_connected: bool = True


def draw(curves: Sequence[Curve], width: int, height: int, *, x_end: float = 0.0) -> list[Text]:
    """The curves in one frame of `width` x `height` characters, the scale of y at the left; later curves on top.

    The frame goes on to `x_end`, or to the last point. Empty when there are fewer than two points.
    """
    points = [point for curve in curves for point in curve.points]
    if len(points) < 2 or width < 16 or height < 2:
        return []
    scale = _Scale.around(points, width - _LABEL, height, x_end)
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for curve in curves:
        if curve.points:
            _plot(cells, scale, curve)
    return [_row(cells, scale, row) for row in range(height)]


_LABEL = 8


@dataclass(frozen=True)
class _Scale:
    """Which dot a point falls on."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    columns: int
    rows: int

    @classmethod
    def around(cls, points: Sequence[Point], width: int, height: int, x_end: float) -> "_Scale":
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return cls(min(xs), max(x_end, *xs), min(ys), max(ys), 2 * width, 4 * height)

    def column(self, x: float) -> int:
        return round((x - self.x_low) / ((self.x_high - self.x_low) or 1) * (self.columns - 1))

    def row(self, y: float) -> int:
        return round((self.y_high - y) / ((self.y_high - self.y_low) or 1) * (self.rows - 1))


def _plot(cells: dict[tuple[int, int], tuple[int, str]], scale: _Scale, curve: Curve) -> None:
    """Sets the dots of a curve; several points of one column are averaged, and neighbours joined."""
    columns = _columns(scale, curve.points)
    for column, rows in _joined(columns) if curve.is_connected else ((at, (row,)) for at, row in columns):
        for row in rows:
            key = (row // 4, column // 2)
            bits = cells[key][0] if key in cells else 0
            cells[key] = (bits | _DOTS[column % 2][row % 4], curve.style)


def _joined(columns: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Sequence[int]]]:
    """The rows to set in each column so that the curve has no gap."""
    yield columns[0][0], (columns[0][1],)
    for (left, start), (right, end) in pairwise(columns):
        before = start
        for column in range(left + 1, right + 1):
            row = round(start + (end - start) * (column - left) / (right - left))
            yield column, range(min(before, row), max(before, row) + 1)
            before = row


def _columns(scale: _Scale, points: Sequence[Point]) -> list[tuple[int, int]]:
    found: dict[int, list[float]] = {}
    for x, y in points:
        found.setdefault(scale.column(x), []).append(y)
    return [(column, scale.row(sum(ys) / len(ys))) for column, ys in sorted(found.items())]


def _row(cells: Mapping[tuple[int, int], tuple[int, str]], scale: _Scale, row: int) -> Text:
    last = scale.rows // 4 - 1
    label = f"{scale.y_high:6.2f} ┤" if row == 0 else f"{scale.y_low:6.2f} ┤" if row == last else f"{'':6} │"
    line = Text(label, style="dim")
    for column in range(scale.columns // 2):
        bits, style = cells.get((row, column), (0, ""))
        line.append(chr(_BLANK + bits), style=style)
    return line
