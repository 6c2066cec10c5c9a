"""Fixtures that every test may use.

Torch and what needs it is imported inside them: with workers, the process that hands out the tests runs none of them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads beside another busy process are ten times slower than one

import pytest

from tests.on_all_cores import pytest_cmdline_main, pytest_collection_modifyitems  # noqa: F401 - hooks
from tests.small_recipes import overrides, warm_weights, without_figures  # noqa: F401 - two are fixtures

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

SHARED = Path(__file__).resolve().parents[2] / "shared"  # real data and weights; tests that need them skip without


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What is imported and collected stays: the garbage collector need not walk through it, then and in every run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_finish() -> None:
    """Doctests, too, run on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    from lightning.pytorch import seed_everything

    seed_everything(0, verbose=False)


@pytest.fixture
def shared() -> Path:
    """The folder with real data beside the checkout; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout")
    return SHARED


@pytest.fixture
def vectors() -> Path:
    """Reference inputs and outputs that belong to the project."""
    return Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def trainer_in() -> Callable[..., Trainer]:
    """A quiet CPU trainer that writes into the folder that comes first; for fixtures of a wider scope."""
    from lightning.pytorch import Trainer

    def make(folder: Path, **kwargs: Any) -> Trainer:
        quiet: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "default_root_dir": str(folder),
        }
        return Trainer(**quiet | kwargs)

    return make


@pytest.fixture
def make_trainer(trainer_in: Callable[..., Trainer], tmp_path: Path) -> Callable[..., Trainer]:
    """A quiet CPU trainer that writes into the test's own folder."""
    return partial(trainer_in, tmp_path)


@pytest.fixture(scope="module")
def no_figures() -> Iterator[None]:
    """The module's runs draw nothing; for ``pytest.mark.usefixtures`` where no test looks at a figure."""
    with without_figures():
        yield


@pytest.fixture(scope="module")
def light_grounder() -> Iterator[None]:
    """The backbone ``tiny`` of the module's runs of MCN costs less; for ``pytest.mark.usefixtures``."""
    from tests.light_grounder import light_backbone

    with light_backbone():
        yield


@pytest.fixture(scope="session")
def cifar10_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CIFAR-10 in the original format: 200 training and 50 test images. Do not change its files."""
    from datamodules.demo import write_cifar

    return write_cifar(tmp_path_factory.mktemp("cifar10"))


@pytest.fixture(scope="session")
def imagenet_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ImageNet: 4 classes with 8 training and 3 test images each. Do not change its files."""
    from datamodules.demo import write_imagenet

    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="session")
def places365_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Places365 as it is distributed: 4 classes with 8 training and 3 test images each."""
    from datamodules.demo import write_places365

    return write_places365(tmp_path_factory.mktemp("places365"), layout="distributed")


@pytest.fixture(scope="session")
def market1501_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Market-1501: 8 training and 6 test persons, 3 cameras, distractors and junk. Do not change its files."""
    from datamodules.demo import write_market1501

    return write_market1501(tmp_path_factory.mktemp("market1501"), train_ids=8, test_ids=6)


@pytest.fixture(scope="session")
def duke_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small DukeMTMC-reID: 7 training and 4 test persons, 2 cameras. Do not change its files."""
    from datamodules.demo import write_duke_mtmc

    return write_duke_mtmc(tmp_path_factory.mktemp("duke"), train_ids=7, test_ids=4)


@pytest.fixture(scope="session")
def faces_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of drawn faces: 8 persons to train on, 4 and 4 to evaluate on. Do not change its files."""
    from datamodules.demo import write_faces

    sizes = {"train_ids": 8, "val_ids": 4, "test_ids": 4, "easy": 3, "hard": 3, "probes": 2, "folds": 4, "size": 32}
    return write_faces(tmp_path_factory.mktemp("faces"), **sizes)


@pytest.fixture(scope="session")
def lasot_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LaSOT: drawn videos of 6 frames, 4 to train on and 2 to test on. Do not change its files."""
    from datamodules.demo import write_tracking

    return write_tracking(tmp_path_factory.mktemp("tracking") / "lasot", train=4, test=2, frames=6, size=(60, 80))


@pytest.fixture(scope="session")
def crops_root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stored crops of two videos, as the official preparation of ImageNet VID and others leaves them."""
    from tests.crop_data import write_crops

    return write_crops(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="session")
def wider_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small WIDER FACE: 6 drawn pictures to train on, 6 to test on, one of each faceless. Do not change its files."""
    from datamodules.demo import write_wider_face

    return write_wider_face(tmp_path_factory.mktemp("wider") / "widerface", train=6, val=6, size=(128, 160), faces=4)


@pytest.fixture(scope="session")
def refcoco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small RefCOCO, RefCOCO+ and RefCOCOg: 4 drawn pictures to train on, 1 to 3 of each other split. Do not change."""
    from tests.mcn_runs import write_refer_sets

    return write_refer_sets(tmp_path_factory.mktemp("refer"))


@pytest.fixture(autouse=True, scope="session")
def _tiny_networks() -> None:
    from tests.tiny import register

    register()


@pytest.fixture(autouse=True, scope="session")
def _done_once() -> Iterator[None]:
    """Hundreds of short runs: each times a network once, not 22 times, and a class is asked for its arguments once."""
    from callbacks import complexity_logger
    from lit_methods.cli import parsing
    from lit_methods.functional import measure_latency

    with pytest.MonkeyPatch.context() as patch:
        once = partial(measure_latency, repeats=1, warmup=0)
        patch.setattr(complexity_logger, "measure_latency", lambda models, size, repeats: once(models, size))
        patch.setattr(parsing, "signature", cache(parsing.signature))
        yield
