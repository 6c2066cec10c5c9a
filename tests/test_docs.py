"""Every command and code block of the README and of the methods' pages, run on demo data.

Commands run in this process, made small; their results stay, so that a later block finds ``runs/`` as a reader would.
"""

import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.cifar import read_digits
from datamodules.demo import (
    write_cifar,
    write_duke_mtmc,
    write_faces,
    write_imagenet,
    write_market1501,
    write_refcoco,
    write_tracking,
    write_wider_face,
)
from datamodules.demo.people import DEMOS, Demo
from datamodules.wider_files import read_face_list
from lit_methods.cli import main
from lit_methods.cli.parsing import RunCLI
from lit_methods.functional.wider_files import prediction_path, write_predictions
from lit_methods.mcn.model import MCN_BACKBONES
from tests.light_grounder import light_darknet
from tests.light_supernet import light_op
from tests.small_recipes import ONE_PROCESS, RECIPES, SMALL, small_words

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("lit_methods/*/README.md"))]
QUICK = {
    "fit": [*SMALL, *ONE_PROCESS, "--trainer.strategy", "auto", "--trainer.max_epochs", "2"],
    "test": ["--trainer.limit_test_batches", "1", "--trainer.accelerator", "cpu"],
    "validate": ["--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu"],
    "predict": ["--trainer.accelerator", "cpu"],
    "export": ["--formats", "torch"],  # ONNX takes three times as long, and has its own tests
    "doctor": ["--trainer.accelerator", "cpu"],
}
FACES = {"train_ids": 6, "val_ids": 4, "test_ids": 4, "easy": 3, "hard": 2, "probes": 2, "folds": 4, "size": 32}
SCENES = {"train": 6, "val": 6, "size": (128, 160), "faces": 4}
REFERRED = {"images": {"train": 6, "val": 2, "testA": 2}, "size": (64, 48)}
TINY = {  # what is trained is then exported, too, or follows films
    ("fit", "nad"): ["--model.model", "tiny"],
    ("fit", "siamban"): ["--model.width", "2", "--model.channels", "4"],
}
LONG = {  # what the page goes on with nothing of, such as recipes as in the papers: by default it is built, not run
    "README": {"lit_methods.export", "ImageNetDataModule"},
    "asfd": {"asfd_widerface_d0"},
    "backbones": {"classifier_cifar10_resnet56", "hrank_cifar10_resnet56"},
    "bpe_mip": {"lit_methods.export"},
    "filter_sketch": {"filter_sketch_cifar10_resnet56", "ImageNetDataModule"},
    "mcn": {"mcn_refcoco", "mcn_refcoco_vgg16", "mcn_refcocoplus", "mcn_refcocog", "lit_methods.export"},
    "nad": {"nad_cifar10_resnet56"},
}
ASKS = {"--list", "--help", "--print_config"}  # answered without a run

pytestmark = pytest.mark.usefixtures("no_figures")  # test_recipes.py draws those of the same recipes


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "console"))
    lines = text.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module", autouse=True)
def _short_runs():
    """Fewer digits, people, faces and films, lighter cells; W&B takes seconds to start, and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEMOS, "Market-1501", Demo(partial(write_market1501, train_ids=20, test_ids=6), 20, 3))
        patch.setitem(DEMOS, "DukeMTMC-reID", Demo(partial(write_duke_mtmc, train_ids=20, test_ids=6), 20, 2))
        patch.setattr("datamodules.face_folder.write_faces", partial(write_faces, **FACES))
        patch.setattr("datamodules.face_folder.DEMO_IDENTITIES", FACES["train_ids"])
        patch.setattr("datamodules.wider_face.write_wider_face", partial(write_wider_face, **SCENES))
        patch.setattr("datamodules.refcoco.write_refcoco", partial(write_refcoco, **REFERRED))
        patch.setattr("datamodules.lasot.write_tracking", partial(write_tracking, train=6, frames=6))
        patch.setattr("datamodules.cifar.read_digits", lambda train: tuple(part[::5] for part in read_digits(train)))
        patch.setattr("lit_methods.bpe_mip.cell_network.build_op", light_op)
        patch.setitem(MCN_BACKBONES, "tiny", light_darknet)
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, warm_weights, refcoco_root):
    """Of a reader who has the data and weights that the pages speak of, and reads one page after the other."""
    folder = tmp_path_factory.mktemp("reader")
    write_cifar(folder / "data" / "cifar10")
    write_imagenet(folder / "data" / "imagenet")
    write_market1501(folder / "data" / "Market-1501-v15.09.15", train_ids=6, test_ids=3)
    write_duke_mtmc(folder / "data" / "DukeMTMC-reID", train_ids=6, test_ids=3)
    write_faces(folder / "data" / "faces", **FACES)
    _write_benchmarks(write_tracking(folder / "data" / "lasot", train=4, test=2, frames=6, size=(60, 80)))
    _write_face_sets(write_wider_face(folder / "data" / "widerface", **SCENES))
    shutil.copytree(refcoco_root, folder / "data" / "refer")
    (folder / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(np.full((40, 30, 3), 80 * i, np.uint8)).save(folder / "pictures" / f"{i}.png")
    shutil.copy(warm_weights("resnet56", 10), folder / "resnet56.npz")
    return folder


def _write_benchmarks(lasot: Path) -> None:
    """Its test videos as OTB has them, and a tracker's boxes, which are the true ones."""
    results = lasot.parents[1] / "results"
    results.mkdir()
    for name in (lasot / "testing_set.txt").read_text().split():
        (video,) = lasot.glob(f"*/{name}")
        shutil.copy(video / "groundtruth.txt", results / f"{name}.txt")
        other = lasot.with_name("otb100") / name
        shutil.copytree(video / "img", other / "img")
        shutil.copy(video / "groundtruth.txt", other / "groundtruth_rect.txt")


def _write_face_sets(wider: Path) -> None:
    """A detector's files for its test pictures, the true faces; and the same pictures as FDDB has them."""
    faces = read_face_list(wider / "wider_face_split" / "wider_face_val_bbx_gt.txt")
    lists = wider.with_name("fddb") / "FDDB-folds"
    lists.mkdir(parents=True)
    for number, (file, name) in enumerate(zip(faces.files, faces.names, strict=True)):
        boxes = torch.from_numpy(faces.faces_of(number)[:, :4]).double()
        path = prediction_path(wider.parents[1] / "detections", name)
        write_predictions(path, Path(name).name, boxes, boxes[:, 3] / 1000)
        picture = lists.parent / "originalPics" / "big" / f"img_{number}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(wider / "WIDER_val" / "images" / file, picture)
    for fold in range(1, 11):
        text = f"big/img_{fold - 1}\n1\n30.0 20.0 1.5 64.0 64.0 1\n" if fold <= len(faces.files) else ""
        (lists / f"FDDB-fold-{fold:02d}-ellipseList.txt").write_text(text)


@pytest.fixture(scope="module")
def done() -> set[str]:
    """What the reader has run already, and need not run again because another page says it too."""
    return set()


def place(page: Path) -> str:
    return "README" if page.parent == ROOT else page.parent.name


def is_long(page: Path, command: str) -> bool:
    return bool(LONG.get(place(page), set()) & {*shlex.split(command)})


def run(command: str, build_only: bool = False) -> None:
    words = shlex.split(command)
    entry = words[2].removeprefix("lit_methods.")
    if entry in ("report", "dashboard"):
        assert main(entry, words[3:]) == 0, command
        return
    recipe = words[3] if len(words) > 3 else ""
    smaller = list(zip(*[iter(small_words(recipe))] * 2, strict=True))
    if "--data" in words:  # of another class than the recipe's
        smaller = [pair for pair in smaller if not pair[0].startswith("--data.")]
    small = [] if ASKS & set(words) else [*QUICK[entry], *chain(*smaller), *TINY.get((entry, recipe), [])]
    if build_only:
        if "--ckpt_path" in words and entry != "export":  # of a run that there was not
            del words[(place := words.index("--ckpt_path")) : place + 2]
        RunCLI(entry, ["--config", str(RECIPES[recipe]), *words[4:], *small]).build()
    else:
        assert main(entry, [*words[3:], *small]) == 0, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_code(page, folder, done, monkeypatch):
    monkeypatch.chdir(folder)
    found = commands(page)
    assert found, "a page shows its commands as $ lines of a console block"
    for command in found:
        if command.startswith("python -m lit_methods."):
            if is_long(page, command):
                run(command, build_only=True)
            elif command not in done:
                run(command)
                done.add(command)
        else:
            assert command.startswith(("pip install", "python -m pytest", "python examples/")), f"not run: {command}"
    code = blocks(page, "python")
    assert code
    names: dict[str, object] = {}
    for block in code:
        exec(compile(block, str(page), "exec"), names)  # later blocks go on where earlier ones ended


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if place(page) in LONG], ids=place)
def test_long_commands(page, folder, done, monkeypatch):
    """After the fits of the same recipes, whose checkpoints they take."""
    monkeypatch.chdir(folder)
    found = [command for command in commands(page) if is_long(page, command)]
    assert len(found) >= len(LONG[place(page)])
    recipes = {shlex.split(command)[3] for command in found}
    for command in commands(page):
        words = shlex.split(command)
        fits = words[2] == "lit_methods.fit" and words[3] in recipes and command not in done
        if command in found or fits:
            run(command)


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(example, tmp_path):
    subprocess.run([sys.executable, str(example)], cwd=tmp_path, check=True, timeout=600)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
            if target.endswith(".png"):
                assert (page.parent / target).stat().st_size < 100_000
