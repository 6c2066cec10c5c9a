"""What makes a packaged recipe small enough for a test; the fixtures are known everywhere through ``conftest.py``."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from lit_methods.cli.recipes import find_recipes

RECIPES = find_recipes()
ONE_PROCESS = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.sync_batchnorm", "false"]
SMALL = [
    *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    *("--trainer.num_sanity_val_steps", "0", "--data.batch_size", "8", "--data.num_workers", "0"),
]

EMBEDDED = [r for r in RECIPES if (RECIPES[r].parents[1] / r).is_dir()]  # named like the folder of their method


def small_words(recipe: str) -> list[str]:
    """What the recipe's own method adds to these, from ``tests/small/<method>.yaml``."""
    words: list[str] = []
    for path in sorted(Path(__file__).parent.glob("small/*.yaml")):
        for pattern, options in yaml.safe_load(path.read_text("utf-8")).items():
            if fnmatch(recipe, pattern):
                words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return words


def monitored(recipe: str) -> str:
    """The figure of the test that its checkpoints are chosen by in validation; top-1 where nothing is chosen."""
    chosen = yaml.safe_load(RECIPES[recipe].read_text("utf-8")).get("checkpoint", {})
    figure = chosen.get("monitor", "val/top1")
    if figure == "epoch":  # the last one is kept; what the test says of it is another matter
        if recipe.startswith("ddl_faces"):
            return "test/hard_rank1"
        return "test/reconstruction" if recipe.startswith("camera_stargan") else "test/mAP"
    return figure.replace("val/", "test/")


FIGURES = [
    "pruning.kept_filters_figure",
    "hrank_pruning.rank_histograms_figure",
    "hrank_pruning.rank_stability_figure",
    "filter_sketch_pruning.sketch_errors_figure",
    "sub_architecture_analysis.similarity_figure",
    "sub_architecture_analysis.kept_ratio_figure",
    "sub_architecture_analysis.paths_figure",
    "sub_architecture_analysis.confusion_figure",
    "mosaic_hit_rate.hit_rate_figure",
    "mip_search.importance_figure",
    "mip_search.agreement_figure",
    "mip_replay.replay_figure",
    "architecture_search.genotype_figure",
    "architecture_search.search_figure",
    "genotype_logger.genotype_figure",
    "genotype_logger.alpha_figure",
    "cluster_report.feature_map_figure",
    "cluster_report.iterations_figure",
    "similarity_histogram_logger.similarity_figure",
    "tracking_results.ope_figure",
    "tracking_results.expected_overlap_figure",
    "detection_results.precision_recall_figure",
    "detection_results.false_positive_figure",
    "auto_fem_search.auto_fem_figure",
    "auto_fem_search.edge_weights_figure",
]


@contextmanager
def without_figures() -> Iterator[None]:
    """Runs draw no figures, which takes longer than to train a small network."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("report.RunReport.figure", *FIGURES):
            patch.setattr(f"callbacks.{place}", lambda *args: None)
        yield


@pytest.fixture(scope="session")
def warm_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], str]:
    """Weights of a network whose batch norms have seen something: what ``at_epoch=0`` takes for a trained one."""
    import numpy as np
    import torch

    from lit_methods.backbones import build_backbone

    folder = tmp_path_factory.mktemp("weights")

    def make(arch: str, num_classes: int) -> str:
        path = folder / f"{arch}-{num_classes}.npz"
        if not path.exists():
            network = build_backbone(arch, num_classes)
            network(torch.rand(4, 3, 32, 32))
            np.savez(path, **{k: v.numpy() for k, v in network.state_dict().items()})
        return str(path)

    return make


@pytest.fixture
def overrides(
    cifar10_root,
    imagenet_root,
    places365_root,
    market1501_root,
    duke_root,
    faces_root,
    lasot_root,
    crops_root,
    wider_root,
    refcoco_root,
    warm_weights,
    monkeypatch,
) -> Callable[[str], list[str]]:
    """What makes a recipe small enough for a test, without touching what it is about."""
    from lit_methods.mcn.model import MCN_BACKBONES
    from tests.light_grounder import light_darknet

    def make(recipe: str) -> list[str]:
        config = yaml.safe_load(RECIPES[recipe].read_text())
        words = [*ONE_PROCESS, *SMALL]
        if "imagenet" in recipe or "places365" in recipe:
            root = imagenet_root if "imagenet" in recipe else places365_root
            words += ["--data.root", str(root), "--data.image_size", "64", "--data.resize_size", "72"]
            words += ["--data.val_fraction", "0.25"]
        elif "cifar10" in recipe:
            words += ["--data.root", str(cifar10_root)]
        elif recipe.startswith(("ad_cluster", "reid_source", "camera_stargan")):
            target = duke_root if recipe.endswith("duke") else market1501_root
            words += ["--data.root", str(target)]
            if recipe == "ad_cluster":
                words += ["--data.source_root", str(duke_root), "--data.val_ids", "2"]
        elif recipe.startswith("ddl"):
            words += ["--data.root", str(market1501_root if "market1501" in recipe else faces_root)]
        elif recipe.startswith("siamban"):
            words += ["--data.root", str(lasot_root)]
            if recipe == "siamban_full":
                stored = {"root": crops_root, "frame_range": 3, "uses": 2}
                extra = dict.fromkeys(config["data"]["init_args"]["extra_sets"], stored)
                words += ["--data.extra_sets", json.dumps(extra), "--data.uses", "2"]
        elif recipe.startswith("asfd"):
            words += ["--data.root", str(wider_root)]
        elif recipe.startswith("mcn"):
            words += ["--data.root", str(refcoco_root)]
            monkeypatch.setitem(MCN_BACKBONES, "tiny", light_darknet)
        arguments = config["model"]["init_args"]
        if "base_checkpoint" in arguments and "backbone" in arguments:
            words += ["--model.base_checkpoint", warm_weights(arguments["backbone"], 4 if "imagenet" in recipe else 10)]
        return words + small_words(recipe)

    return make
