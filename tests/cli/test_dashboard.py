"""Dashboards: what they may say, what is saved, and that runs log what they show."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb

from lit_methods.cli import main
from lit_methods.cli.dashboard import as_json, build, classes_of, dashboard
from lit_methods.cli.loggers import RunWandbLogger
from lit_methods.cli.panels import Dashboard, find_dashboards, read_dashboard, shared_panels
from lit_methods.cli.recipes import find_recipes
from tests.logged_keys import FOLDER, KINDS, keys_of, logged_keys
from tests.small_recipes import EMBEDDED
from tests.test_wandb import bare
from tests.wandb_record import read_record

DASHBOARDS = {method: read_dashboard(path) for method, path in find_dashboards().items()}
RECIPES = sorted({section.recipe for one in DASHBOARDS.values() for section in one.sections})


def shown(one: Dashboard, recipe: str) -> dict[str, set[str]]:
    """Key to kinds of values that its panels can show, of the sections that are about a recipe."""
    kinds = {"media": {"picture", "film"}, "table": {"table"}}
    keys = {column: {"number"} for column in one.columns} if recipe == one.method else {}
    for section in one.sections:
        for panel in section.panels if section.recipe == recipe else ():
            keys |= {key: kinds.get(panel.kind, {"number"}) for key in panel.keys}
            keys |= {panel.x: {"number"}} if panel.kind == "line" else {}
    return keys


def assert_logged(one: Dashboard, recipe: str, logged: dict[str, str]) -> None:
    for key, kinds in shown(one, recipe).items():
        assert key in logged, f"{one.method} shows {key}, which {recipe} does not log"
        assert kinds & {*logged[key].split("+")}, f"{one.method} shows {key} as {kinds}, it is a {logged[key]}"


def test_every_method_has_a_dashboard_with_the_same_kinds_of_sections():
    assert set(DASHBOARDS) == {*EMBEDDED}
    for one in DASHBOARDS.values():
        names = [section.name for section in one.sections]
        assert names[0].startswith("Learning curves")
        assert {"Costs", "Media"} <= {*names}
        assert len(names) >= 4
        assert all(section.recipe.startswith(one.method.split("_")[0]) for section in one.sections)


@pytest.mark.parametrize("method", DASHBOARDS)
def test_every_key_of_a_panel_is_logged(method):
    for recipe in {section.recipe for section in DASHBOARDS[method].sections}:
        assert_logged(DASHBOARDS[method], recipe, logged_keys(recipe))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in FOLDER.glob("*.txt")))
def test_no_key_has_two_kinds(recipe):
    """W&B shows one kind of thing under a key."""
    assert set(logged_keys(recipe).values()) <= {"number", "text", *KINDS.values()}


def test_every_shared_panel_is_used():
    used = [panel for one in DASHBOARDS.values() for section in one.sections for panel in section.panels]
    assert [name for name, panel in shared_panels().items() if panel not in used] == []


def test_a_panel_whose_key_is_not_logged_is_noticed():
    one = DASHBOARDS["hrank"]
    for change in ({"test/top1": "table"}, {"prune/kept_filters": "number"}):
        with pytest.raises(AssertionError):
            assert_logged(one, "hrank", logged_keys("hrank") | change)
    logged = logged_keys("hrank")
    del logged["prune/ranks"]
    with pytest.raises(AssertionError, match=r"prune/ranks, which hrank does not log"):
        assert_logged(one, "hrank", logged)


def test_every_workspace_is_built_and_serialised_without_a_network(capsys, tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    bare(monkeypatch, tmp_path)
    monkeypatch.setattr("socket.socket.connect", None)
    assert main("dashboard", ["--dry_run", "--entity", "me", "--project", "mine"]) == 0
    saved = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(saved) == [one.title for one in DASHBOARDS.values()]
    for one in DASHBOARDS.values():
        workspace = saved[one.title]
        assert (workspace["entity"], workspace["project"]) == ("me", "mine")
        inner = workspace["spec"]["section"]
        assert inner["settings"]["xAxis"] == "trainer/global_step"
        sections = inner["panelBankConfig"]["sections"]
        assert [(s["name"], len(s["panels"])) for s in sections] == [(s.name, len(s.panels)) for s in one.sections]
        text = json.dumps(sections)
        assert all(f'"{key}"' in text for section in one.sections for panel in section.panels for key in panel.keys)
        (runs,) = inner["runSets"]
        (only,) = runs["filters"]["filters"]
        assert (only["key"], only["op"]) == ({"section": "config", "name": "model.value.class_path"}, "IN")
        assert only["value"] == classes_of(one.method)
        assert runs["runFeed"]["columnOrder"][1:] == [f"summary:{key}" for key in one.columns]


def test_runs_are_told_apart_by_what_their_configuration_holds():
    of = {path: method for method in DASHBOARDS for path in classes_of(method)}
    for recipe, path in find_recipes().items():
        (named,) = re.findall(r"^  class_path: (lit_methods\S+)", path.read_text("utf-8"), re.MULTILINE)
        assert (named in of) != recipe.startswith("classifier")  # a network by itself, of no method
        if recipe in DASHBOARDS:
            assert of[named] == recipe
    assert len({path.rpartition(".")[2] for path in of}) == len(of) / 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("kind: lines", "toy/dashboard.yaml: Curves: kind='lines' is none of line, scalar, bar, media, table; did you"),
        ("keys: [a/b, a/b]", "line of 'a/b' twice"),
        ("keys: []", "a line has keys, got []"),
        ("keys: a/b", "keys: expected a list of logged keys, got 'a/b'"),
        ("kind: scalar", "a scalar has one key, got ['a/b', 'a/c']"),
        ("kind: bar, x: epoch", "no 'x' here; there are keys, kind, title"),
        ("titel: T", "no 'titel' here; did you mean 'title'?"),
        ("keys: [], title: B", "'title' is there twice"),
        ("panels: [los]", "no shared panel 'los'; did you mean 'loss'?"),
        ("panels: []", "Curves: panels: expected a list, got []"),
        ("columns: [a/b, a/b]", "column 'a/b' twice"),
    ],
)
def test_a_wrong_dashboard_is_refused_in_one_line(change, said, tmp_path):
    name, _, value = change.partition(": ")
    panel = {"title": "T", "kind": "line", "keys": "[a/b, a/c]"}
    panel |= {name: value} if name not in ("panels", "columns") else {}
    inner = ", ".join(f"{key}: {text}" for key, text in panel.items())
    panels = value if name == "panels" else f"[{{{inner}}}]"
    columns = value if name == "columns" else "[a/b]"
    path = tmp_path / "toy" / "dashboard.yaml"
    path.parent.mkdir()
    path.write_text(f"title: Toy\ncolumns: {columns}\nsections: [{{name: Curves, panels: {panels}}}]\n")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - its text is looked at
        read_dashboard(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith("toy/dashboard.yaml")
    assert "\n" not in str(caught.value)


def test_an_eleventh_method_needs_its_own_file_alone(tmp_path):
    path = tmp_path / "toy" / "dashboard.yaml"
    path.parent.mkdir()
    path.write_text("title: Toy\ncolumns: []\nsections: [{name: Learning curves, panels: [loss, seconds]}]\n")
    assert find_dashboards(tmp_path) == {"toy": path}
    assert [panel.keys for panel in read_dashboard(path).sections[0].panels] == [["train/loss"], ["_runtime"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hrnk", "--entity", "me"], "no dashboard 'hrnk'; did you mean 'hrank'?"),
        (["hrank"], "entity is missing: --entity NAME"),
        (["--entity"], "argument --entity: expected one argument"),
        (["--entity", "me", "--projekt", "p"], "unrecognized arguments: --projekt"),
        (["hrank", "--entity", "me"], "no key for W&B: wandb login, or set WANDB_API_KEY; --dry_run prints"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, tmp_path, monkeypatch, capsys):
    bare(monkeypatch, tmp_path)
    assert main("dashboard", words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_without_the_extra_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert dashboard(["hrank", "--dry_run"]) == 2
    assert capsys.readouterr().err.endswith("; dashboards need pip install 'lit-methods[dashboards]'\n")


def test_without_a_network_one_line_says_so(tmp_path, monkeypatch, capsys):
    bare(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert dashboard(["hrank", "--entity", "me"]) == 2
    assert capsys.readouterr().err.startswith("error: no answer from http://127.0.0.1:9 (")


def test_the_project_is_that_of_runs(tmp_path, monkeypatch):
    bare(monkeypatch, tmp_path)
    run = RunWandbLogger(tmp_path, {}, True, {})
    pytest.importorskip("wandb_workspaces")
    assert as_json(build(DASHBOARDS["hrank"], "me", "p"))["project"] == "p"
    from lit_methods.cli.dashboard import _parse

    assert _parse([]).project == run._wandb_init["project"]
    monkeypatch.setenv("WANDB_PROJECT", "other")
    assert _parse([]).project == "other"


# -- slow: a server that answers like W&B's, and runs that log what is shown ------------------------------------------


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[dict]]]:
    """A server in the place of W&B's; gives its address and what was asked for."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(404, {})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/graphql":  # and not how the client is doing
                asked.append(json.loads(body))
            view = {"id": "vw1", "name": "nw-abc-v"}
            account = {"id": "u1", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            data = {"viewer": account, "upsertView": {"view": view, "inserted": True}}
            self._answer(status, {"data": data})

        def _answer(self, code: int, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        wandb.teardown()  # its process would go on asking
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 403])
def test_workspaces_are_saved_and_their_addresses_printed(status, tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    bare(monkeypatch, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with answering(status) as (url, asked):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        code = dashboard(["hrank", "mcn", "--entity", "me", "--project", "mine"])
    out, err = capsys.readouterr()
    if status == 403:
        assert code == 2
        assert err.startswith("error: W&B did not save 'HRank': ")
        assert err.count("\n") == 1
        return
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{title}: {url}/me/mine?nw=abc" for title in ("HRank", "MCN")]
    saved = [query["variables"] for query in asked if "upsertView" in query["query"]]
    assert [(one["displayName"], one["entityName"], one["projectName"]) for one in saved] == [
        ("HRank", "me", "mine"),
        ("MCN", "me", "mine"),
    ]
    assert json.loads(saved[0]["spec"])["section"]["panelBankConfig"]["sections"][0]["name"] == "Learning curves"


TWO = ["--trainer.max_epochs", "2"]
FEW_TRIALS = ["--model.architectures", "2", "--model.ground_truth", "[0.5, 0.6]", "--trainer.callbacks.k", "1"]
SMALLER = {  # recipes to words; two epochs where nothing is said
    "ppba": [  # a victim that is right of some pictures, and attacks that succeed and are drawn
        *(*TWO, "--trainer.limit_train_batches", "1.0", "--data.batch_size", "25", "--model.lr", "0.02"),
        *("--model.eps", "40", "--model.max_queries", "100"),
    ],
    "ddl": [*TWO, "--trainer.callbacks.every_n_steps", "1"],
    "asfd": [*TWO, "--trainer.callbacks.every_n_epochs", "1"],
    "mcn": [*TWO, "--trainer.callbacks.every_n_epochs", "1"],
    "bpe_mip": [*FEW_TRIALS, "--trainer.callbacks.space", "{epochs: [1, 2], lr: [0.01, 0.1], cutout: [0, 1]}"],
    "bpe_random": [],  # till its budget is spent
    "bpe_darts": [*TWO, "--model.unrolled", "false"],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_logs_what_is_listed_and_shown(recipe, overrides, tmp_path, monkeypatch):
    bare(monkeypatch, tmp_path)
    words = [*overrides(recipe), *SMALLER.get(recipe, TWO), "--trainer.log_every_n_steps", "1", "--logger", "wandb"]
    assert main("fit", [recipe, "--run_dir", str(tmp_path / "run"), *words]) == 0
    found, listed = keys_of(read_record(tmp_path / "run")), logged_keys(recipe)
    assert not any("+" in kind for kind in found.values())
    assert {key: kind for key, kind in found.items() if listed.get(key) != kind} == {}  # a long run may log more
    for one in DASHBOARDS.values():
        assert_logged(one, recipe, found)
