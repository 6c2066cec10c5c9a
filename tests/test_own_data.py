"""The scripts that start from a user's own files: short, of public parts, and each runs on a small set of its kind."""

import ast
import csv
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "own_data"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "demo.py")


def names_of(tree):
    """Whatever is imported or reached for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            yield node.attr


def test_there_is_a_script_for_each_kind_of_file():
    assert SCRIPTS == ["class_folders.py", "coco_boxes.py", "person_crops.py", "sentences.py", "video.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_short_and_of_public_parts(script):
    text = (FOLDER / script).read_text("utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= 45
    assert [name for name in names_of(tree) if name.startswith("_")] == []
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]  # no framework


def test_the_page_names_every_script():
    page = (FOLDER / "README.md").read_text("utf-8")
    assert [script for script in SCRIPTS if f"]({script})" not in page] == []


@pytest.fixture
def demo(monkeypatch):
    """The drawn sets; scripts import them as a script does, from their own folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import demo

    yield demo
    del sys.modules["demo"]


@pytest.fixture
def run(demo, monkeypatch, tmp_path):
    """Run a script in an empty folder; gives all its variables."""
    monkeypatch.chdir(tmp_path)

    def script(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(FOLDER / name), run_name="__main__")

    return script


def size_of(file):
    with Image.open(file) as picture:
        return picture.size


@pytest.mark.slow
def test_class_folders_become_a_pruned_network_that_names_pictures(demo, run, tmp_path, capsys):
    own = demo.class_folders(tmp_path / "own", pictures=12)
    (own / "tench" / ".DS_Store").write_bytes(b"no picture")
    new = sorted((own / "goldfish").iterdir())[0]
    had = run("class_folders.py", own, "--epochs", 2, "--new", new)
    assert had["cost"].results["complexity/macs"] < 0.9 * had["cost"].results["complexity/dense_macs"]
    assert had["data"].class_names == sorted(folder.name for folder in own.iterdir())
    assert len(had["data"].train_dataloader().dataset) + len(had["data"].val_dataloader().dataset) == 4 * 9
    assert f"goldfish/{new.name}: {had['found']['names'][0]} " in capsys.readouterr().out
    assert (tmp_path / "runs/own_classes/pruned.ckpt").is_file()
    assert size_of(tmp_path / "runs/own_classes" / f"{new.stem}.png")[0] > 64
    assert not any(path.is_symlink() for path in own.rglob("*"))


@pytest.mark.slow
def test_person_crops_become_a_ranking_of_their_folder(demo, run, tmp_path):
    own = demo.person_crops(tmp_path / "own", persons=12, pictures=2)
    for file in own.iterdir():  # another scheme of names: camera first
        who, _, rest = file.name.partition("_cam")
        file.rename(own / f"hall{rest[0]}-{who}-{rest[2:]}")
    query = own / "hall2-alice_1-0001.jpg"
    had = run(
        "person_crops.py", own, "--name", r"(?P<camera>[^-]+)-(?P<person>[^-]+)-", "--epochs", 1, "--query", query
    )
    found = [Path(path).name for path in had["found"]["nearest"]]
    assert len(set(found)) == 6
    assert set(found) < {file.name for file in own.iterdir()} - {query.name}
    assert len(had["data"].val_query_files) == 3 * 3  # three persons are kept from training, in three cameras
    assert had["data"].num_classes == 9
    assert size_of(tmp_path / "runs/own_people" / f"{query.stem}.png")[0] > 6 * 32


@pytest.mark.slow
def test_coco_boxes_become_a_detector_and_pictures_with_boxes(demo, run, tmp_path):
    own = demo.coco_boxes(tmp_path / "own", pictures=10)
    had = run("coco_boxes.py", own, "--epochs", 1)
    assert had["data"].evaluation_names("test") == ["0000", "0005"]
    batch = next(iter(had["data"].test_dataloader()))
    boxes = [b["bbox"] for b in had["content"]["annotations"] if b["image_id"] == 0]
    assert batch["boxes"][0].tolist() == [[x, y, x + w, y + h] for x, y, w, h in boxes]
    assert "test/ap_all" in had["trainer"].callback_metrics
    assert sorted(file.name for file in (tmp_path / "runs/own_boxes").glob("*.png")) == ["0000.png", "0005.png"]
    assert size_of(tmp_path / "runs/own_boxes/0000.png") == size_of(own / "images" / "0000.jpg")


@pytest.mark.slow
def test_a_video_becomes_rows_and_a_film(demo, run, tmp_path):
    root = demo.videos(tmp_path / "data/own_demo/videos", train=2, frames=6)
    rows = run("video.py", "--epochs", 1)["rows"]
    assert [row["frame"] for row in rows] == list(range(6))
    box = demo.film(root, tmp_path / "own.gif")
    again = run("video.py", "own.gif", "--box", box, "--ckpt_path", "runs/own_video/tracker.ckpt")["rows"]
    assert [row["x"] for row in again] == [row["x"] for row in rows]  # the same tracker, the same film
    written = list(csv.DictReader((tmp_path / "runs/own_video/videos/own.csv").open()))
    assert [round(float(row["x"]), 3) for row in written] == [round(row["x"], 3) for row in rows]
    assert any((tmp_path / "runs/own_video/videos").glob("own.[mg]*"))


@pytest.mark.slow
def test_sentences_become_a_network_that_finds_what_a_new_one_speaks_of(demo, run, tmp_path):
    own = demo.sentences(tmp_path / "own", pictures=10)
    lines = (own / "sentences.tsv").read_text().splitlines()
    name, _, box, _ = lines[0].split("\t")
    lines[0] = "\t".join([name, "The thing, at the TOP!", box])  # no outline
    (own / "sentences.tsv").write_text("\n".join(lines))
    had = run("sentences.py", own, "--epochs", 1, "--ask", own / "0003.jpg", "the thing at the top")
    x, y, w, h = map(float, box.split(","))
    assert had["refs"][0]["sentences"] == [{"sent": "the thing at the top"}]
    assert had["boxes"][0]["segmentation"] == [[x, y, x + w, y, x + w, y + h, x, y + h]]
    assert len(had["boxes"][1]["segmentation"][0]) >= 6
    assert {ref["image_id"] for ref in had["refs"] if ref["split"] == "testA"} == {4, 9}
    assert "test/miou" in had["trainer"].callback_metrics
    assert had["found"]["text"] == "the thing at the top"
    assert size_of(tmp_path / "runs/own_sentences/found.png")[0] > 0
