"""The page that explains a run directory, without a browser."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image

from lit_methods.cli.report import curves, report
from lit_methods.cli.report.comparing import load_recipe, own_recipe, paper_scale, table
from lit_methods.cli.report.pictures import WIDEST
from lit_methods.cli.report.reading import read_runs
from lit_methods.cli.report.words import sentence
from tests.cli.report_runs import CONFIG, SUMMARY, write_run

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'so'"


class Page(HTMLParser):
    """Text, cells of rows, and everything that a browser might load."""

    VOID = {"meta", "link", "img", "wbr", "br", "line", "path", "circle"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, name: str) -> list[str]:
        return next(row[1:] for row in self.rows if row and row[0] == name)


def page_of(*folders, output=None) -> Page:
    words = [str(folder) for folder in folders]
    assert report([*words, *(["--output", str(output)] if output else [])]) == 0
    return Page((output or folders[0] / "report.html").read_text("utf-8"))


def test_a_page_tells_what_was_run_and_how_it_differs(tmp_path, capsys):
    run = write_run(tmp_path / "a", pictures={"test_predictions.png": (64, 32)}, tables={"kept.csv": "layer,kept\na,4"})
    page = page_of(run)
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "report.html")
    assert (
        "HRank was trained on CIFARDataModule (digits) for 2 of 4 epochs from seed 0, in 3 min 51 s; it ended by "
        "itself, and its best checkpoint by val/top1 was tested: test/top1 is 0.625."
    ) in page.text
    scale = paper_scale(read_runs([run])[0])
    assert page.row("test/top1") == ["0.625", str(scale.paper["test/top1"])]
    assert page.row("model.lr") == ["0.25", "0.1", "0.01"]  # run, recipe, the paper's settings
    assert page.row("HRankPruning.num_images") == ["640", "512", "640"]  # defaults, but in the recipe
    assert "Given on the command line, beside the recipe: --model.lr 0.25" in page.text
    assert page.row("complexity/params") == ["116,555of 269,722"]
    assert page.row("torch") == ["2.14.1"]
    assert page.row("a") == ["4"]
    assert f"python -m lit_methods.fit --config {run}/config.yaml" in page.text


def test_a_page_loads_nothing(tmp_path):
    run = write_run(tmp_path / "a", pictures={"a.png": (64, 32), "b.gif": (32, 32)})
    page = page_of(run)
    loaded = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sum(value.startswith("data:image/") for value in loaded) == 2
    assert all(value.startswith(("data:", "#")) for value in loaded)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\(|https?://|srcset", page.html)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")


def test_a_page_is_well_formed_and_has_its_headings(tmp_path):
    page = page_of(write_run(tmp_path / "a", tables={"a.csv": "x,y\n1,2"}))
    assert page.open == []
    assert ("html", {"lang": "en"}) in page.tags
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1"] + ["h2"] * 6
    for target in {attributes["href"] for tag, attributes in page.tags if tag == "a"}:
        assert f'id="{target[1:]}"' in page.html


def test_names_and_texts_are_no_markup(tmp_path):
    name = "<b>&amp; 'x'"
    config = CONFIG | {"description": HOSTILE, "recipe": "<i>mine", "seed_everything": HOSTILE}
    summary = SUMMARY | {f"test/{HOSTILE}": HOSTILE, "versions": [HOSTILE]}
    run = write_run(
        tmp_path / name,
        config,
        summary,
        f'step,"train/<s>{HOSTILE.replace(chr(34), chr(34) * 2)}"\n1,2\n2,3\n',
        f"- changed: {HOSTILE}\n- command: fit\n",
        {"<img src=x>_test.png": (16, 16)},
        {f"{name}.csv": f"<u>,y\n{HOSTILE},2\n"},
    )
    page = page_of(run, output=tmp_path / "out.html")
    assert {"script", "b", "i", "u", "s"} & {tag for tag, attributes in page.tags if not attributes} == {"b"}
    assert "<script" not in page.html
    assert page.html.count("<img") == 1
    assert HOSTILE in page.text
    assert "train/<s>" not in page.html


def test_runs_of_one_method_stand_side_by_side(tmp_path):
    config = CONFIG | {"trainer": {"max_epochs": 9}}
    one = write_run(tmp_path / "x" / "run", pictures={"p.png": (40, 20), "q.png": (40, 20)})
    two = write_run(tmp_path / "y" / "run", config, SUMMARY | {"test/top1": 0.5}, pictures={"p.png": (40, 20)})
    page = page_of(one, two, output=tmp_path / "both.html")
    assert page.row("figure")[:2] == ["x/run", "y/run"]
    assert page.row("test/top1")[:2] == ["0.625", "0.5"]
    assert page.row("trainer.max_epochs")[:3] == ["4", "9", "14"]
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["p of x/run", "p of y/run", "q of x/run"]
    plot = curves.plots(read_runs([one, two]))["Figures"][0]
    assert [(line.label, line.colour) for line in plot.lines] == [("x/run, val", 0), ("y/run, val", 1)]


def test_runs_of_different_methods_leave_cells_empty(tmp_path):
    config = CONFIG | {"recipe": "nad", "model": {"class_path": "lit_methods.NAD", "init_args": {"beta": 2.0}}}
    other = write_run(tmp_path / "b", config, {"test/selectivity": 0.5, "duration_s": 1.0}, card=None)
    page = page_of(write_run(tmp_path / "a"), other)
    assert page.row("test/selectivity")[:2] == ["", "0.5"]
    assert page.row("test/top1")[:2] == ["0.625", ""]
    assert page.row("model") == ["HRank", "NAD"]
    assert page.row("model.beta")[:2] == ["2", "1"]  # in the table of its own recipe
    assert "hrank against its recipe" in page.text


def test_a_run_that_was_stopped_has_a_page(tmp_path):
    page = page_of(write_run(tmp_path / "a", summary=None, card=None))
    assert "for 2 of 4 epochs from seed 0; it has left no summary: it was stopped, or is still running." in page.text
    assert page.row("model.lr")[:2] == ["0.25", "0.1"]


@pytest.mark.parametrize("metrics", ["", "epoch,step\n", "epoch,step,train/loss\n0,1,nan\n1,2,nan\n", "\0\n"])
def test_metrics_without_a_curve_are_no_fault(tmp_path, metrics):
    page = page_of(write_run(tmp_path / "a", metrics=metrics))
    assert "Curves" not in page.text


def test_damaged_files_are_named_on_the_page(tmp_path):
    run = write_run(tmp_path / "a", pictures={"broken.png": (400, 200)}, tables={"empty.csv": ""})
    (run / "summary.json").write_text('{"test/top1": 0.', "utf-8")
    picture = run / "pictures" / "broken.png"
    picture.write_bytes(picture.read_bytes()[:200])
    page = page_of(run)
    assert "summary.json cannot be read: Unterminated" in page.text or "summary.json cannot be read: Exp" in page.text
    assert "broken.png cannot be read" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert "It has no rows." in page.text


def test_figures_that_are_no_numbers_are_told(tmp_path):
    run = write_run(tmp_path / "a", summary=SUMMARY | {"test/top1": "nan", "test/list": [], "duration_s": "nan"})
    page = page_of(run)
    assert page.row("test/top1")[0] == "nan"
    loss = next(plot for plot in curves.plots(read_runs([run]))["Losses"])
    assert [(line.label, line.last, line.lost) for line in loss.lines] == [("train", "0.5", 0)]  # val has one value


@pytest.mark.slow
def test_large_pictures_are_embedded_scaled(tmp_path):
    run = write_run(tmp_path / "a", pictures={"large.png": (2 * WIDEST, 40)})
    page = page_of(run)
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    data = base64.b64decode(image["src"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (WIDEST, 20) == (int(image["width"]), int(image["height"]))
    assert "scaled down from 2400 x 40" in page.text


def test_long_tables_are_cut(tmp_path):
    rows = "\n".join(f"row{number},{number}" for number in range(1000))
    page = page_of(write_run(tmp_path / "a", tables={"long.csv": f"name,number\n{rows}\n"}))
    assert "194 more rows" in page.text
    assert "800 further rows are in the file alone." in page.text
    assert not any(row[:1] == ["row200"] for row in page.rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "RUN_DIR: missing"),
        (["{tmp}/none"], "there is no such directory"),
        (["{tmp}/empty"], "is no run: it has no config.yaml"),
        (["{tmp}/file"], "is a file; name the run's directory"),
        (["{tmp}"], "runs lie in {tmp}/a"),
        (["{tmp}/a", "{tmp}/empty"], "is no run"),
        (["{tmp}/a", "--output"], "output: name the HTML file"),
        (["{tmp}/a", "--output", "{tmp}"], "is a directory; name the file"),
        (["{tmp}/a", "--output", "{tmp}/no/where.html"], "there is no directory"),
        (["{tmp}/a", "--out", "x.html"], "no option '--out'"),
    ],
)
def test_a_mistake_is_one_line_and_no_page(tmp_path, capsys, words, told):
    write_run(tmp_path / "a", pictures={})
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = set(tmp_path.rglob("*"))
    assert report([word.format(tmp=tmp_path) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told.format(tmp=tmp_path) in err
    assert set(tmp_path.rglob("*")) == before


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "a")
    (run / "report.html").write_text("old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert report([str(run)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "old"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_the_papers_settings_are_those_of_a_recipe_of_the_same_method(tmp_path):
    def scale(recipe: str, model: str, data: str) -> str | None:
        config = {"recipe": recipe, "model": {"class_path": model}, "data": {"class_path": data}}
        (run,) = read_runs([write_run(tmp_path / recipe, config, None, None, None)])
        found = paper_scale(run)
        return found and found.name

    assert scale("ppba", "lit_methods.PPBA", "datamodules.ImageNetDataModule").startswith("ppba_imagenet_")
    assert scale("ddl", "lit_methods.DDLComparison", "datamodules.FaceFolderDataModule").startswith("ddl_faces_")
    assert scale("asfd", "lit_methods.ASFD", "datamodules.WIDERFaceDataModule") == "asfd_widerface_d0"
    assert scale("my_own", "lit_methods.SiamBAN", "datamodules.LaSOTDataModule").startswith("siamban_")
    assert scale("hrank_cifar10_resnet56", "lit_methods.HRank", "datamodules.CIFARDataModule") is None
    assert scale("toy", "toys.Toy", "toys.Data") is None


def test_a_run_that_only_follows_its_recipe_differs_in_nothing(tmp_path):
    recipe = load_recipe("hrank")
    defaults = {"momentum": 0.9, "finetune_lr": 0.05, "gamma": 0.1}  # config.yaml names them all
    model = recipe.config["model"] | {"init_args": recipe.config["model"]["init_args"] | defaults}
    (run,) = read_runs([write_run(tmp_path / "a", recipe.config | {"recipe": "hrank", "model": model})])
    assert table([run], [own_recipe(run)]) == []


def test_a_sentence_tells_an_evaluation_from_a_fit(tmp_path):
    card = "# hrank\n\n- command: test\n- checkpoint: runs/x/checkpoints/last.ckpt\n"
    (run,) = read_runs([write_run(tmp_path / "a", card=card, metrics=None)])
    told = sentence(run)
    assert told.startswith("HRank was tested on CIFARDataModule (digits) with the checkpoint last.ckpt from seed 0")
    assert told.endswith("test/top1 is 0.625.")


def test_the_first_screen_has_the_figures_that_the_method_is_watched_by(tmp_path):
    config = CONFIG | {"recipe": "ddl", "model": {"class_path": "lit_methods.DDLComparison"}}
    config |= {"checkpoint": {"monitor": "val/rank1_of_both"}}
    summary = {"test/rank1_of_both": 0.5, "test/easy_rank1": 0.75, "test/hard_rank1": 0.25, "test/loss": 1.0}
    summary |= {"test/hard_rank1_baseline": 0.125, "test/hard_rank1_std": 0.0625}
    page = page_of(write_run(tmp_path / "a", config, summary))
    tiles = page.text[: page.text.index("Figures")]
    assert "test/rank1_of_both0.5 test/hard_rank10.25baseline: 0.125 test/easy_rank10.75" in tiles
    assert page.row("test/hard_rank1")[0] == "0.25 \u00b1 0.0625"
    assert not any(row[:1] == ["test/hard_rank1_std"] for row in page.rows)
    names = [row[0] for row in page.rows if row and row[0].startswith("test/")]
    assert names[-1] == "test/scface_rank1"  # published, of other data


def test_a_checkpoint_that_no_figure_of_the_test_was_chosen_by_is_told_as_such(tmp_path):
    config = CONFIG | {"checkpoint": {"monitor": "trial/best"}}
    (run,) = read_runs([write_run(tmp_path / "a", config, {"trial/best": 0.5, "test/top1": 0.75})])
    assert sentence(run).endswith("it ended by itself, and its best checkpoint by trial/best (0.5) was tested.")


def test_a_table_of_figures_that_stand_above_is_closed_and_an_id_is_no_amount(tmp_path):
    summary = SUMMARY | {"complexity/macs": 18800038}
    complexity = "of,dense,pruned\nparams,269722,116555\nmacs,18800038,18800038\n"
    tables = {"complexity.csv": complexity, "boxes.csv": "image_id,pixels\n300060,300060\n"}
    page = page_of(write_run(tmp_path / "a", summary=summary, tables=tables))
    assert page.row("300060") == ["300,060"]
    assert "complexity, whose figures stand in other sections" in page.text


def test_a_class_of_another_package_under_a_path_with_blanks_and_umlauts(tmp_path, capsys):
    config = {"model": {"class_path": "toys.Toy", "init_args": {"lr": 0.5}}, "data": {"class_path": "toys.Data"}}
    run = write_run(tmp_path / "gr\u00fc\u00dfe aus k\u00f6ln", config, {"test/score": 0.5}, card="- command: fit\n")
    moved = run.rename(tmp_path / "m\u00f6ved to")
    page = page_of(moved)
    assert capsys.readouterr().out.splitlines()[-1] == str(moved / "report.html")
    assert "Toy was trained on Data" in page.text
    assert f"--config '{moved}/config.yaml'" in page.text
    assert "Differences" not in page.text  # there is nothing to hold it against


@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_run_of_another_command_has_a_page(command, tmp_path):
    card = f"# hrank\n\n- command: {command}\n- checkpoint: runs/x/checkpoints/last.ckpt\n"
    summary = {"predict": {"predict/samples": 3}, "validate": {"val/top1": 0.5}}[command] | {"seed": 0}
    page = page_of(write_run(tmp_path / "a", summary=summary, metrics=None, card=card))
    again = "Run it again python -m lit_methods.validate --config" in page.text
    assert again == (command == "validate")
    assert ("was asked for predictions" in page.text) == (command == "predict")


@pytest.mark.slow
def test_many_rows_of_metrics_make_no_large_page(tmp_path):
    rows = "\n".join(f"{step // 100},{step},{1 / (step + 1)},{step % 97}" for step in range(10_000))
    run = write_run(tmp_path / "a", metrics=f"epoch,step,train/loss,cluster/count\n{rows}\n")
    assert len(page_of(run).html) < 60_000


def test_lines_stay_inside_their_plot(tmp_path):
    rows = "\n".join(f"{step},{(-1) ** step * step**3},{10.0 ** (step % 9 - 4)}" for step in range(2000))
    (run,) = read_runs([write_run(tmp_path / "a", metrics=f"step,cluster/wild,train/loss\n{rows}\n")])
    found = [plot for plots in curves.plots([run]).values() for plot in plots]
    assert [plot.log for plot in found] == [False, True]
    for plot in found:
        (line,) = plot.lines
        points = [tuple(map(float, pair.split())) for pair in re.split("[ML]", line.path)[1:]]
        assert 100 < len(points) <= curves.MOST_POINTS
        assert all(curves.LEFT <= x <= curves.WIDTH - curves.RIGHT for x, _ in points)
        assert all(curves.TOP <= y <= curves.HEIGHT - curves.BOTTOM for _, y in points)
        assert 2 <= len(plot.yticks) <= 7
        assert all(curves.TOP <= place <= curves.HEIGHT - curves.BOTTOM for place, _ in plot.yticks)


@pytest.mark.slow  # a process of its own
def test_the_report_needs_no_torch():
    code = (
        "import sys, lit_methods.cli.report.page; sys.exit(bool({'torch', 'lightning', 'matplotlib'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
