"""What a dashboard shows, read from YAML: sections of panels that name logged keys.

Each method's folder may have a ``dashboard.yaml``::

    title: WidgetNet                   # of the workspace
    columns: [test/top1]               # of the table of runs
    sections:
      - name: Learning curves
        panels:
          - loss                       # one that methods share, from cli/dashboard.yaml
          - {title: Widgets, kind: line, keys: [widget/count], x: epoch, log_y: true}
      - name: Widget search
        recipe: widget_net_search      # whose runs log these; the recipe called like the folder where nothing is said
        panels: [...]

The kinds are ``line`` (over training; ``x`` and ``log_y`` are optional), ``scalar`` (one number), ``bar`` (last values
of several runs side by side), ``media`` (pictures and films) and ``table`` (one, whose title is its key). W&B draws
histograms on the page of a single run only, so a dashboard has none.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lit_methods.functional.suggestions import nearest

STEP = "trainer/global_step"  # the x axis of everything that is logged
KINDS = {  # the words that a panel of each kind takes
    "line": {"title", "keys", "x", "log_y"},
    "scalar": {"title", "keys"},
    "bar": {"title", "keys"},
    "media": {"title", "keys"},
    "table": {"keys"},
}
OPTIONAL = {"x", "log_y"}
ONE_KEY = {"scalar", "table"}


class Panel(NamedTuple):
    """One panel: what is drawn how; ``x`` and ``log_y`` are of lines."""

    kind: str
    keys: list[str]
    title: str = ""
    x: str = STEP
    log_y: bool = False


class Section(NamedTuple):
    """Panels under a heading, and the recipe whose runs log their keys."""

    name: str
    recipe: str
    panels: list[Panel]


class Dashboard(NamedTuple):
    """All that a method shows; ``columns`` are keys of the table of runs."""

    method: str
    title: str
    columns: list[str]
    sections: list[Section]


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"line {node.start_mark.line + 1}: {min(twice)!r} is there twice")
        return super().construct_mapping(node, deep)


def find_dashboards(folder: Path | None = None) -> dict[str, Path]:
    """Method to file; a method is called like its folder.

    Args:
        folder: of the folders of methods; ``None`` is the package's own.

    Example:
        >>> list(find_dashboards())[:3]
        ['ad_cluster', 'asfd', 'bpe_mip']
    """
    folder = folder or Path(str(files("lit_methods")))
    return {p.parent.name: p for p in sorted(folder.glob("*/dashboard.yaml")) if p.parent.name != "cli"}


def shared_panels() -> dict[str, Panel]:
    """The panels that dashboards call by name.

    Example:
        >>> shared_panels()["loss"].keys
        ['train/loss']
    """
    path = Path(str(files("lit_methods.cli") / "dashboard.yaml"))
    return {name: _panel(entry, f"{path.name}: {name}", {}) for name, entry in _load(path).items()}


def read_dashboard(path: Path) -> Dashboard:
    """A method's dashboard, checked.

    Args:
        path: its ``dashboard.yaml``, in a folder called like the method.

    Raises:
        ValueError: what the file says is no dashboard; names the file, the section and the fault.

    Example:
        >>> dashboard = read_dashboard(find_dashboards()["hrank"])
        >>> dashboard.title, dashboard.sections[0].name
        ('HRank', 'Learning curves')
    """
    method = path.parent.name
    where = f"{method}/{path.name}"
    try:
        whole = _fields(_load(path), {"title", "columns", "sections"}, set(), where)
    except (ValueError, yaml.YAMLError) as ex:
        text = " ".join(str(ex).split())
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None
    known, sections = shared_panels(), []
    for entry in _list(whole["sections"], f"{where}: sections"):
        section = _fields(entry, {"name", "panels", "recipe"}, {"recipe"}, where)
        here = f"{where}: {section['name']}"
        panels = [_panel(panel, here, known) for panel in _list(section["panels"], f"{here}: panels")]
        sections.append(Section(str(section["name"]), section.get("recipe", method), panels))
    _once([section.name for section in sections], where, "section")
    for kind in KINDS:
        shown = [key for section in sections for panel in section.panels if panel.kind == kind for key in panel.keys]
        _once(shown, where, f"{kind} of")
    columns = _texts(whole["columns"], f"{where}: columns")
    _once(columns, where, "column")
    return Dashboard(method, str(whole["title"]), columns, sections)


def _panel(entry: Any, where: str, known: dict[str, Panel]) -> Panel:
    if isinstance(entry, str):
        if entry not in known:
            raise ValueError(f"{where}: no shared panel {entry!r}{nearest(entry, known)}")
        return known[entry]
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: a panel is a mapping or the name of a shared one, got {entry!r}")
    kind = entry.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind={kind!r} is none of {', '.join(KINDS)}{nearest(str(kind), KINDS)}")
    fields = _fields(entry, {"kind", *KINDS[kind]}, OPTIONAL, where)
    keys = _texts(fields["keys"], f"{where}: keys")
    if not keys or (kind in ONE_KEY and len(keys) > 1):
        raise ValueError(f"{where}: a {kind} has {'one key' if kind in ONE_KEY else 'keys'}, got {keys}")
    return Panel(**(fields | {"keys": keys}))


def _load(path: Path) -> Any:
    return yaml.load(path.read_text("utf-8"), _StrictLoader)


def _fields(entry: Any, names: set[str], optional: set[str], where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected {', '.join(sorted(names))}, got {entry!r}")
    for name in entry:
        if name not in names:
            hint = nearest(str(name), names)
            raise ValueError(f"{where}: no {name!r} here{hint}; there are {', '.join(sorted(names))}")
    if missing := sorted(names - optional - {*entry}):
        raise ValueError(f"{where}: {missing[0]} is missing")
    return entry


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: expected a list, got {value!r}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: expected a list of logged keys, got {value!r}")
    return value


def _once(names: list[str], where: str, what: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{where}: {what} {twice[0]!r} twice; once is enough")
