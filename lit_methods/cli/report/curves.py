"""Curves: which series go into one plot, and their points, lines and ticks in the plot's own units."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_methods.cli.report.reading import Points, Run
from lit_methods.cli.report.words import chosen, figure

WIDTH, HEIGHT = 340, 200  # of a plot, in units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 24  # margins
MOST_POINTS = 240  # of a line; of more, the lowest and the highest of every stretch stay
DOTTED = 12  # lines of so few points show them
COLOURS = 8  # in the style sheet

_GROUPS = (  # the first that fits; what fits none is a figure
    ("Rates", re.compile(r"(^|/)(lr|momentum)(\b|-|$)")),
    ("Costs", re.compile(r"macs|flops|params|bytes|latency|hours|seconds|memory|images_per")),
    ("Losses", re.compile(r"loss|(^|[/_])(ce|mse|kl|nll)($|_)")),
)
_ORDER = ("Figures", "Losses", "Rates", "Costs")
_STAGES = ("val", "test", "train")
_TWIN = re.compile(r"_(baseline|static|direct|fixed)$")  # what a figure is held against


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        label: for the legend.
        colour: its number in the style sheet.
        style: ``"solid"``, ``"thin"`` or ``"dashed"``.
        path: of the SVG, in units of the plot.
        dots: centres of its points where there are few.
        last: the last value that is a number, as text.
        lost: how many values are no numbers, or cannot be drawn.
    """

    label: str
    colour: int
    style: str
    path: str
    dots: list[tuple[float, float]]
    last: str
    lost: int


@dataclass(frozen=True)
class Plot:
    """One plot.

    Args:
        title: the log key, without its stage where there is one.
        group: ``"Figures"``, ``"Losses"``, ``"Rates"`` or ``"Costs"``.
        lines: one or more.
        xticks: position and text.
        yticks: likewise.
        log: the values' axis is logarithmic.
        told: the plot in a sentence, for those who cannot see it.
    """

    title: str
    group: str
    lines: list[Line]
    xticks: list[tuple[float, str]]
    yticks: list[tuple[float, str]]
    log: bool
    told: str


@dataclass
class _Series:
    run: int
    stage: str
    twin: str
    points: Points = field(default_factory=list)


def plots(runs: Sequence[Run]) -> dict[str, list[Plot]]:
    """The plots of some runs by group; those of the figure that the checkpoint is chosen by come first.

    Every series with two or more points at different steps is in one. Stages of one name share a plot, and so do runs.

    Args:
        runs: one or more.

    Example:
        >>> from pathlib import Path
        >>> points = [(9.0, 1.5), (19.0, 0.5)]
        >>> run = Run(Path("a"), "a", series={"train/loss": points, "val/loss": points, "val/top1": points})
        >>> {group: [[line.label for line in plot.lines] for plot in found] for group, found in plots([run]).items()}
        {'Figures': [['val']], 'Losses': [['val', 'train']]}
    """
    known = {key for run in runs for key in run.series}
    gathered: dict[str, list[_Series]] = {}
    for number, run in enumerate(runs):
        for key, points in run.series.items():
            if len({step for step, value in points if math.isfinite(value)}) > 1:
                title, stage, twin = _parts(key, known)
                gathered.setdefault(title, []).append(_Series(number, stage, twin, points))
    monitored = {_parts(key, known)[0] for key in map(chosen, runs) if key}
    found: dict[str, list[Plot]] = {group: [] for group in _ORDER}
    for title in sorted(gathered, key=lambda name: (name not in monitored, name.endswith("_std"))):
        plot = draw(title, _group(title), gathered[title], [run.label for run in runs])
        found[plot.group].append(plot)
    return {group: drawn for group, drawn in found.items() if drawn}


def _parts(key: str, known: set[str]) -> tuple[str, str, str]:
    """Title, stage and twin of a log key.

    Example:
        >>> _parts("val/rank1_baseline", {"val/rank1"}), _parts("cluster/count", set())
        (('rank1', 'val', 'baseline'), ('cluster/count', '', ''))
    """
    twin = ""
    if (match := _TWIN.search(key)) and key[: match.start()] in known:
        key, twin = key[: match.start()], match[1]
    stage, _, name = key.partition("/")
    return (name, stage, twin) if stage in _STAGES and name else (key, "", twin)


def _group(title: str) -> str:
    return next((group for group, pattern in _GROUPS if pattern.search(title)), "Figures")


def draw(title: str, group: str, series: list[_Series], labels: Sequence[str]) -> Plot:
    """One plot of some series; ``labels`` are the runs'."""
    series = sorted(series, key=lambda one: (one.run, _STAGES.index(one.stage) if one.stage else 0, one.twin))
    finite = [(step, value) for one in series for step, value in one.points if math.isfinite(value)]
    steps, numbers = [step for step, _ in finite], [value for _, value in finite]
    log = group in ("Losses", "Rates") and min(numbers) > 0 and max(numbers) / min(numbers) >= 200
    xs = Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    ys = Axis(min(numbers), max(numbers), HEIGHT - BOTTOM, TOP, log, room=0.04)
    lines = [_line(one, place, len(labels) > 1, labels, xs, ys) for place, one in enumerate(series)]
    told = "; ".join(f"{line.label or title} ends at {line.last}" for line in lines)
    return Plot(title, group, lines, xs.ticks(5), ys.ticks(5), log, f"{title} over steps: {told}")


def _line(one: _Series, place: int, several: bool, labels: Sequence[str], xs: Axis, ys: Axis) -> Line:
    words = [labels[one.run] if several else "", one.stage, one.twin]
    colour = (one.run if several else place) % COLOURS
    style = "dashed" if one.twin or (several and one.run >= COLOURS) else "thin" if one.stage == "train" else "solid"
    stretches: list[list[tuple[float, float]]] = [[]]
    for step, value in thinned(one.points):
        if math.isfinite(value):
            stretches[-1].append((xs.place(step), ys.place(value)))
        else:
            stretches.append([])
    lost = sum(not math.isfinite(value) for _, value in one.points)
    path = "".join(
        "".join(f"{'L' if number else 'M'}{x:.1f} {y:.1f}" for number, (x, y) in enumerate(stretch))
        for stretch in stretches
    )
    few = len(one.points) <= DOTTED
    dots = [point for stretch in stretches for point in stretch if few or len(stretch) == 1]
    last = next(value for _, value in reversed(one.points) if math.isfinite(value))
    return Line(", ".join(word for word in words if word), colour, style, path, dots, figure(last), lost)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most so many points: of every stretch the lowest and the highest, so that no spike is lost.

    Args:
        points: in the order of their steps.
        most: an even number.

    Example:
        >>> thinned([(0, 0), (1, 5), (2, 1), (3, -4), (4, 1), (5, 1)], most=2)
        [(1, 5), (3, -4)]
    """
    if len(points) <= most:
        return points
    size = -(-len(points) // (most // 2))
    kept: Points = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])} if finite else set()
        kept += sorted(ends) or stretch[:1]
    return kept


class Axis:
    """Numbers to places on a line.

    Args:
        low: the smallest number.
        high: the largest.
        start: where the smallest is.
        end: where the largest is.
        log: logarithmic; all numbers are positive.
        room: so much of the whole is left free at both ends.

    Example:
        >>> axis = Axis(0, 14, 0, 140)
        >>> axis.place(7), axis.ticks(3)
        (70.0, [(0.0, '0'), (50.0, '5'), (100.0, '10')])
    """

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False, room: float = 0) -> None:
        self.log = log
        low, high = self._scaled(low), self._scaled(high)
        pad = (high - low) * room or (abs(high) * 0.1 or 1.0) * (high == low)
        self.low, self.high, self.start, self.end = low - pad, high + pad, start, end

    def _scaled(self, number: float) -> float:
        return math.log10(number) if self.log else number

    def place(self, number: float) -> float:
        """Where a number is."""
        return self.start + (self._scaled(number) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Places and texts of round numbers, about ``most`` of them."""
        if self.log and self.high - self.low >= 1:
            lowest, highest = math.ceil(self.low), math.floor(self.high)
            apart = max(1, -(-(highest - lowest) // most))
            numbers = [10.0**power for power in range(lowest, highest + 1, apart)]
            return [(self.place(number), short(number, number)) for number in numbers]
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        step = round_step((high - low) / most)
        first = math.ceil(low / step - 1e-9)
        numbers = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
        return [(self.place(number), short(number, step)) for number in numbers]


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not smaller.

    Example:
        >>> round_step(0.3), round_step(13), round_step(1)
        (0.5, 20.0, 1.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def short(number: float, step: float) -> str:
    """A tick's text, as exact as its step needs.

    Args:
        number: where it is.
        step: between two ticks.

    Example:
        >>> short(0.25, 0.05), short(20000, 5000), short(1.5e6, 5e5), short(1e-5, 1e-5), short(-0.0, 1)
        ('0.25', '20k', '1.5M', '1e-05', '0')
    """
    if abs(number) < step * 1e-6:
        return "0"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit * (10 if name == "k" else 1):
            return f"{number / unit:.{_decimals(step / unit)}f}{name}"
    return f"{number:.{_decimals(step)}f}" if step >= 1e-4 else f"{number:.3g}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
