"""The page: everything that is shown, put into the templates beside this file."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_methods.cli.dashboard import classes_of
from lit_methods.cli.given import last
from lit_methods.cli.panels import find_dashboards, read_dashboard
from lit_methods.cli.report import comparing, curves, pictures, tables
from lit_methods.cli.report.reading import Run
from lit_methods.cli.report.words import chosen, duration, epochs, figure, in_order, sentence

PLOTS = 6  # of a group that are shown at once
PICTURES = 6

TILES = 3  # figures among the tiles

_TWINS = ("baseline", "static", "direct", "fixed")  # ends of the keys of what a figure is held against
_ANY_METHOD = re.compile(r"loss|/top\d|/dense_|_std$")  # figures of the test that do not tell a method


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page.

    Args:
        name: what it is.
        value: as text.
        beside: what it is held against; may be empty.
    """

    name: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class Difference:
    """A table of differences.

    Args:
        title: above it; empty where one table has all.
        columns: of runs, then of recipes.
        runs: how many of the columns are runs.
        rows: in their order.
        scale: the recipe with the paper's settings; empty where there is none.
        like_recipe: a run's recipe is known, and nothing differs from it.
    """

    title: str
    columns: list[str]
    runs: int
    rows: list[comparing.Row]
    scale: str = ""
    like_recipe: bool = False


def render(runs: Sequence[Run]) -> str:
    """The HTML of the page.

    Everything is in it: pictures as data, colours and lines in its own style sheet, no script. Its policy forbids
    the browser to load anything else.

    Args:
        runs: one or more.

    Example:
        >>> page = render([Run(Path("a"), "<a> & b", {"recipe": "toy"})])
        >>> "<title>toy: &lt;a&gt; &amp; b</title>" in page, "<script" in page
        (True, False)
    """
    scales = [comparing.paper_scale(run) for run in runs]
    papers = tables.papers(runs, scales)
    columns = [paper for paper in papers if paper.figures]
    main, others = tables.figure_rows(runs, columns)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            runs=runs,
            title=_title(runs),
            sentences=[sentence(run) for run in runs],
            tiles=[_tiles(run, papers) for run in runs],
            papers=papers,
            columns=columns,
            main=main,
            others=others,
            differences=_differences(runs, scales),
            plots=_plots(runs),
            frame=curves,
            pictures=pictures.gallery(runs),
            sheets=tables.sheets(runs),
            costs=tables.costs(runs, columns),
            deviations=any("\u00b1" in cell for row in [*main, *others] for cell in row.cells),
            versions=tables.versions(runs),
            again=[_again(run) for run in runs],
            at_once={"plots": PLOTS, "pictures": PICTURES},
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def _title(runs: Sequence[Run]) -> str:
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    return recipes[0] if len(recipes) == 1 else f"{', '.join(recipes[:-1])} and {recipes[-1]}"


def _tiles(run: Run, papers: Sequence[tables.Paper]) -> list[Tile]:
    """The run at a glance."""
    keys = [key for paper in papers for key in paper.figures if key in run.figures and key.startswith("test/")]
    own = [key for key in _columns(run) if key in run.figures]
    if not own:  # the first figures of the test that not every method has
        own = [key for key in in_order(run.figures) if key.startswith("test/") and not _ANY_METHOD.search(key)]
    twins = {f"{key}_{twin}" for key in run.figures for twin in _TWINS}
    first = [key for key in (chosen(run), *keys, *own) if key and key not in twins]
    tiles = [_tile(run, papers, key) for key in list(dict.fromkeys(first))[:TILES]]
    if "duration_s" in run.figures:
        tiles.append(Tile("duration", duration(run.figures["duration_s"])))
    if told := epochs(run):
        number, _, rest = told.partition(" ")
        tiles.append(Tile("epochs", number, rest.removesuffix(" epochs") if "of" in rest else ""))
    for key, dense in (("complexity/params", "complexity/dense_params"), ("prune/params", "prune/dense_params")):
        if key in run.figures and not any(tile.name == "parameters" for tile in tiles):
            before = figure(run.figures.get(dense))
            tiles.append(Tile("parameters", figure(run.figures[key]), f"{before} before" if before else ""))
    return tiles


def _tile(run: Run, papers: Sequence[tables.Paper], key: str) -> Tile:
    """A figure, and below it what it is held against: the paper's, and the run's own comparison."""
    beside = []
    for paper in [paper for paper in papers if key in paper.figures][:1]:
        words = "the paper, with other settings:" if paper.others else "the paper:"
        beside.append(f"{words} {figure(paper.figures[key])}")
    pairs = [(twin, run.figures.get(f"{key}_{twin}")) for twin in _TWINS]
    beside += [f"{twin}: {figure(value)}" for twin, value in pairs if value is not None]
    return Tile(key, figure(run.figures[key]), "; ".join(beside))


def _columns(run: Run) -> tuple[str, ...]:
    """What the dashboard of its method shows of every run, without the costs of a network, which have their tile."""
    method = str(last(run.pairs, "model.class_path") or run.facts.get("method", ""))
    return tuple(key for key in _columns_of(method) if not key.startswith(("prune/", "complexity/")))


@cache
def _columns_of(class_path: str) -> tuple[str, ...]:
    found = find_dashboards()
    name = next((name for name in found if class_path in classes_of(name)), None)
    return tuple(read_dashboard(found[name]).columns) if name else ()


def _differences(runs: Sequence[Run], scales: Sequence[comparing.Recipe | None]) -> list[Difference]:
    """One table for the runs of each recipe; where there are several recipes, one between all runs before them."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(run.recipe if run.config else "", []).append(number)
    groups.pop("", None)
    found = []
    if len(groups) > 1:
        rows = [row for row in comparing.table(runs, []) if sum(map(bool, row.cells)) > 1]
        found.append(Difference("Between the runs", [run.label for run in runs], len(runs), rows))
    for name, numbers in groups.items():
        members = [runs[number] for number in numbers]
        own, scale = comparing.own_recipe(members[0]), scales[numbers[0]]
        recipes = [recipe for recipe in (own, scale) if recipe]
        columns = [run.label for run in members] if len(runs) > 1 else ["this run"]
        columns += (["recipe"] if own else []) + ([f"paper: {scale.name}"] if scale else [])
        title = f"{name} against its recipe" if len(groups) > 1 else ""
        rows = comparing.table(members, recipes)
        like_recipe = own is not None and not any(row.changed for row in rows)
        found.append(Difference(title, columns, len(members), rows, scale.name if scale else "", like_recipe))
    return [difference for difference in found if difference.rows or difference.like_recipe]


def _plots(runs: Sequence[Run]) -> dict[str, list[curves.Plot]]:
    """By group; a few need no headings."""
    found = curves.plots(runs)
    every = [plot for plots in found.values() for plot in plots]
    return {"": every} if 0 < len(every) <= PLOTS else found


def breakable(text: str) -> Markup:
    """A key that may be broken after its slashes, dots and underscores, and nowhere else.

    Args:
        text: any; escaped here.

    Example:
        >>> print(breakable("test/top1 <b>"))
        test/<wbr>top1 &lt;b&gt;
    """
    return Markup(re.sub(r"([/._])(?=\w)", r"\1<wbr>", str(escape(text))))


def _again(run: Run) -> str:
    """The command that does it again; empty where it takes pictures of the user's that nobody noted."""
    command = run.facts.get("command", "fit")
    if command == "predict" or not (run.path / "config.yaml").is_file():
        return ""
    words = ["python", "-m", f"lit_methods.{command}", "--config", str(run.path / "config.yaml")]
    return shlex.join([*words, "--ckpt_path", run.facts["checkpoint"]] if run.facts.get("checkpoint") else words)
