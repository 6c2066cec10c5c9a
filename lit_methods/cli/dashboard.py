"""The dashboards: what methods show (:mod:`.panels`) as saved workspaces at Weights & Biases."""

import argparse
import io
import json
import os
import re
import sys
import urllib.error
import urllib.request
from contextlib import redirect_stderr
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from lit_methods.cli.panels import STEP, Dashboard, Panel, find_dashboards, read_dashboard
from lit_methods.functional.suggestions import first_line, nearest

PROJECT = "lit-methods"  # where runs with --logger wandb go
SECONDS = 10  # to wait for the server


def dashboard(argv: list[str]) -> int:
    """Save one workspace per method, or print them: ``[METHOD...] --entity E [--project P] [--dry_run] [--list]``.

    A workspace shows the runs whose ``model.class_path`` is a class of the method's folder. Each call saves new ones;
    those of earlier calls, and what was changed in them by hand, stay.

    Args:
        argv: the words after the command; without a method, all of them.

    Returns:
        0; 2 for a mistake in these words, no key, no network or no ``wandb-workspaces``, after one line on stderr.

    Example:
        >>> dashboard(["hrnk"])
        2
    """
    try:
        words = _parse(argv)
        known = find_dashboards()
        for method in words.methods:
            if method not in known:
                there = ", ".join(known)
                raise ValueError(f"no dashboard {method!r}{nearest(method, known)} (there are {there})")
        read = [read_dashboard(known[method]) for method in dict.fromkeys(words.methods or known)]
        if words.list:
            print("\n".join(f"{one.method:{max(map(len, known))}}  {one.title}" for one in read))
            return 0
        if not words.entity and not words.dry_run:
            raise ValueError("entity is missing: --entity NAME, your user or team at W&B (or WANDB_ENTITY)")
        workspaces = [build(one, words.entity, words.project) for one in read]
        if words.dry_run:
            print(json.dumps([as_json(one) for one in workspaces], indent=1))
            return 0
        _ask_server()
        for one in workspaces:
            print(f"{one.name}: {_save(one)}", flush=True)
    except ValueError as ex:
        print(f"error: {' '.join(str(ex).split())}", file=sys.stderr)
        return 2
    return 0


def build(one: Dashboard, entity: str, project: str) -> Any:
    """The ``wandb_workspaces.workspaces.Workspace`` of a dashboard; asks no network.

    Args:
        one: what is shown.
        entity: user or team at W&B.
        project: of the runs.

    Raises:
        ValueError: ``wandb-workspaces`` is not installed.

    Example:
        >>> import pytest
        >>> _ = pytest.importorskip("wandb_workspaces")
        >>> workspace = build(read_dashboard(find_dashboards()["hrank"]), "me", "pruning")
        >>> workspace.name, workspace.sections[0].panels[0].title
        ('HRank', 'Training loss')
    """
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as ex:
        raise ValueError(f"{first_line(ex)}; dashboards need pip install 'lit-methods[dashboards]'") from None
    sections = [
        ws.Section(
            name=section.name,
            panels=[_panel(panel) for panel in section.panels],
            is_open=section.recipe == one.method,  # what other recipes log is empty in most runs
            panel_settings=ws.SectionPanelSettings(x_axis=STEP),
        )
        for section in one.sections
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=one.title,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(
            # W&B keeps a nested value of the configuration behind "value"
            filters=f"Config('model.value.class_path') in {classes_of(one.method)}",
            pinned_columns=[f"summary:{key}" for key in one.columns],
        ),
    )


def classes_of(method: str) -> list[str]:
    """How a configuration may name the classes of a method's folder; imports none of them.

    Args:
        method: the folder.

    Example:
        >>> classes_of("filter_sketch")
        ['lit_methods.FilterSketch', 'lit_methods.filter_sketch.module.FilterSketch']
    """
    import lit_methods

    paths = []
    for path in sorted(Path(str(files("lit_methods") / method)).glob("*.py")):
        names = re.findall(r"^class (\w+)", path.read_text("utf-8"), re.MULTILINE)
        for name in sorted({*names} & {*lit_methods.__all__}):
            paths += [f"lit_methods.{name}", f"lit_methods.{method}.{path.stem}.{name}"]
    return paths


def as_json(workspace: Any) -> dict[str, Any]:
    """What would be saved, as plain values.

    Args:
        workspace: as :func:`build` makes it.

    Example:
        >>> import pytest
        >>> _ = pytest.importorskip("wandb_workspaces")
        >>> list(as_json(build(read_dashboard(find_dashboards()["nad"]), "me", "there")))
        ['name', 'entity', 'project', 'spec']
    """
    view = workspace._to_model()  # private: save() knows no dry run
    spec = view.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"name": workspace.name, "entity": workspace.entity, "project": workspace.project, "spec": spec}


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    keys: list[Any] = list(panel.keys)
    if panel.kind == "line":
        return wr.LinePlot(title=panel.title, x=panel.x, y=keys, log_y=panel.log_y or None)
    if panel.kind == "scalar":
        return wr.ScalarChart(title=panel.title, metric=keys[0])
    if panel.kind == "bar":
        return wr.BarPlot(title=panel.title, metrics=keys)
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=keys)
    return wr.WeavePanelSummaryTable(table_name=keys[0])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--entity", default=os.environ.get("WANDB_ENTITY", ""))
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT", PROJECT))
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--list", action="store_true")
    return parser.parse_intermixed_args(argv)


def _ask_server() -> None:
    """Whether W&B can be reached, which its own client tries for hours.

    Raises:
        ValueError: no key, or no answer.
    """
    from lit_methods.cli.loggers import has_wandb_key  # with Lightning, for which nothing before this needs to wait

    instead = "--dry_run prints the workspaces as JSON without key and network"
    if not has_wandb_key():
        raise ValueError(f"no key for W&B: wandb login, or set WANDB_API_KEY; {instead}")
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    try:
        urllib.request.urlopen(url, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        pass  # an answer
    except (OSError, ValueError) as ex:
        raise ValueError(f"no answer from {url} ({first_line(ex)}); {instead}") from None


def _save(workspace: Any) -> str:
    try:
        with redirect_stderr(io.StringIO()):  # it would talk about itself
            return workspace.save().url
    except Exception as ex:  # W&B's own: no such entity, a key that is refused, the network
        raise ValueError(f"W&B did not save {workspace.name!r}: {type(ex).__name__}: {first_line(ex)}") from ex
