"""The page: everything that is shown, put into the templates beside this file."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from lit_methods.cli.report import comparing, curves, pictures, tables
from lit_methods.cli.report.reading import Run
from lit_methods.cli.report.words import chosen, duration, epochs, figure, in_order, sentence

PLOTS = 6  # of a group that are shown at once
PICTURES = 6

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
            costs=tables.costs(runs),
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
    # where nothing is published, the first figure of the test that is the method's own
    own = [key for key in in_order(run.figures) if key.startswith("test/") and not _ANY_METHOD.search(key)]
    first = [key for key in (chosen(run), *keys, *own[:2]) if key]
    tiles = []
    for key in list(dict.fromkeys(first))[:2]:
        paper = next((paper for paper in papers if key in paper.figures), None)
        words = "the paper, with other settings:" if paper and paper.others else "the paper:"
        tiles.append(Tile(key, figure(run.figures[key]), f"{words} {figure(paper.figures[key])}" if paper else ""))
    if "duration_s" in run.figures:
        tiles.append(Tile("duration", duration(run.figures["duration_s"])))
    if told := epochs(run):
        number, _, rest = told.partition(" ")
        tiles.append(Tile("epochs", number, rest.removesuffix(" epochs") if "of" in rest else ""))
    for key, dense in (("complexity/params", "complexity/dense_params"), ("prune/params", "prune/dense_params")):
        if key in run.figures and not any(tile.name == "parameters" for tile in tiles):
            before = figure(run.figures.get(dense))
            tiles.append(Tile("parameters", figure(run.figures[key]), f"{before} before" if before else ""))
    if (seed := run.figures.get("seed", run.config.get("seed_everything"))) is not None:
        tiles.append(Tile("seed", str(seed)))
    return tiles


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
