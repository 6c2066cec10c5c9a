"""Every packaged recipe: builds through the command line, and runs on tiny data in the real on-disk format."""

import json
import shutil
import warnings
from contextlib import nullcontext

import pytest
import yaml
from torch import nn

from callbacks import FilterSketchPruning
from callbacks.pruning import FilterPruning
from lit_methods.backbones import find_backbone, inner_blocks, planned_network, prune_points
from lit_methods.cli import main
from lit_methods.cli.classes import signature
from lit_methods.cli.parsing import LINKED, RunCLI
from lit_methods.filter_sketch.model import widths_at
from lit_methods.functional import count_macs
from tests.left_behind import last_checkpoint, read_summary
from tests.small_recipes import EMBEDDED, ONE_PROCESS, RECIPES, monitored, without_figures

CHEAP = {*EMBEDDED, "ppba_cifar10_resnet56"}  # run by default; the others are marked slow, test_docs.py fits some
PRUNING = ("hrank", "filter_sketch")  # how the names of recipes that prune begin
DRAWN_ELSEWHERE = {
    "hrank_cifar10_resnet56",
    "filter_sketch_cifar10_resnet56",
    "nad_cifar10_resnet56",
    "ad_cluster",  # these in test_ad_cluster_runs.py, ...
    "ddl",
    "nad",
    "ppba",  # in test_attack_runs.py
    "siamban",
    "asfd",
    "asfd_search",
    "mcn",
}  # the first three as in the recipes on embedded data
TESTS_ALONE = [r for r in RECIPES if r.startswith("ppba_")]  # their networks are trained elsewhere


def runs(recipes):
    cheap_or_slow = [pytest.param(r, marks=[] if r in CHEAP else pytest.mark.slow) for r in recipes]
    return pytest.mark.parametrize("recipe", cheap_or_slow)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_builds(recipe, overrides, tmp_path, monkeypatch):
    for fill in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_"):  # up to 138 million random numbers
        monkeypatch.setattr(nn.init, fill, lambda tensor, *args, **kwargs: tensor)
    cli = RunCLI("fit", ["--config", str(RECIPES[recipe]), "--run_dir", str(tmp_path / "run"), *overrides(recipe)])
    cli.build()
    config = yaml.safe_load(RECIPES[recipe].read_text())
    assert config["description"]
    assert not config["trainer"]["use_distributed_sampler"]  # our samplers know their rank themselves
    for name in {*LINKED} & {*signature(type(cli.model))}:  # what the data know has reached a method that takes it
        assert cli.model.hparams[name] == getattr(cli.datamodule, name), name
    backbone = cli.model.hparams.get("backbone")
    if backbone and not recipe.startswith("mcn"):  # which has its own
        assert find_backbone(backbone).input_size[1] in (32, 224, 299)
    pruners = [c for c in cli.trainer.callbacks if isinstance(c, FilterPruning)]
    assert len(pruners) == recipe.startswith(PRUNING)
    for pruner in pruners:
        groups = {point.group for point in prune_points(backbone)}
        if isinstance(pruner, FilterSketchPruning):
            assert len(pruner.rates) == len(inner_blocks(backbone))
        else:
            assert len(pruner.rates) - len(groups) in (0, find_backbone(backbone).spare_rates)
        assert type(cli.trainer.callbacks[-1]).__name__ == "RunCheckpoint"


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.startswith("filter_sketch_")])
def test_rates_of_filter_sketch_lead_to_the_published_costs(recipe):
    """The published ones count batch norm and pooling too, and are rounded: three per cent."""
    config = yaml.safe_load(RECIPES[recipe].read_text())
    backbone, (*_, pruning) = config["model"]["init_args"]["backbone"], config["trainer"]["callbacks"]
    rates = FilterSketchPruning(**pruning["init_args"]).rates
    small = planned_network(widths_at(backbone, rates), 1000 if "imagenet" in recipe else 10)
    macs = count_macs(small, find_backbone(backbone).input_size)
    assert macs == pytest.approx(config["paper"]["prune/macs"], rel=0.03)
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(config["paper"]["prune/params"], rel=0.03)


@runs([r for r in RECIPES if r not in TESTS_ALONE])
def test_recipe_fits_tests_and_resumes(recipe, overrides, tmp_path, capsys):
    words, run = overrides(recipe), tmp_path / "run"
    figure = monitored(recipe)
    with without_figures() if recipe in DRAWN_ELSEWHERE else nullcontext():
        assert main("fit", [recipe, "--run_dir", str(run), "--trainer.max_epochs", "2", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run)
    summary = read_summary(run)
    assert 0 <= summary[figure] <= 1
    assert list((run / "pictures").glob("*.png"))
    checkpoint = last_checkpoint(run)
    assert checkpoint["epoch"] == 1
    if recipe.startswith(PRUNING):
        assert summary["prune/macs"] < summary["prune/dense_macs"]
        assert checkpoint["hyper_parameters"]["plan"]["keep" if recipe.startswith("hrank") else "mid"]
        assert 0 <= summary["test/dense_top1"] <= 1

    (state,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("RunCheckpoint"))
    tested, best = tmp_path / "tested", state["best_model_path"]
    with without_figures():  # the fit has drawn them
        assert main("test", [recipe, "--run_dir", str(tested), "--ckpt_path", best, *words]) == 0
    assert read_summary(tested)[figure] == summary[figure]

    resume = ["--ckpt_path", "last", "--trainer.max_epochs", "3", "--run_dir", str(run)]
    with without_figures():
        assert main("fit", [recipe, *resume, *words]) == 0
    checkpoint = last_checkpoint(run)
    assert checkpoint["epoch"] == 2
    if recipe.startswith(PRUNING):
        resumed = read_summary(run)
        assert resumed["prune/macs"] == summary["prune/macs"]


@runs(TESTS_ALONE)
def test_recipe_only_tests(recipe, overrides, tmp_path):
    for entry in ("fit", "test"):
        run = tmp_path / entry
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the network has no trained weights")
            assert main(entry, [recipe, "--run_dir", str(run), *overrides(recipe)]) == 0
        summary = read_summary(run)
        assert 0 <= summary["test/top1"] <= 1
        assert not (run / "checkpoints").exists()
        lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
        assert len(lines) == summary["test/attacked"] + summary["test/skipped"]
        assert max(line["queries"] for line in lines) <= 12


def test_a_run_that_ends_before_at_epoch_warns_once_and_prunes_nothing(overrides, tmp_path):
    words = [*overrides("hrank"), "--model.backbone", "tiny", "--trainer.callbacks.rates", "0.5"]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main("fit", ["hrank", "--run_dir", str(tmp_path / "run"), "--trainer.max_epochs", "1", *words]) == 0
    assert len([w for w in said if "prunings done" in str(w.message)]) == 1
    summary = read_summary(tmp_path / "run")
    assert "test/top1" in summary
    assert not [key for key in summary if key.startswith("prune/")]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", PRUNING)
def test_the_embedded_recipes_learn(recipe, tmp_path):
    """As they are: what the README promises."""
    assert main("fit", [recipe, "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/top1"] >= 0.95
    assert summary["prune/macs"] <= 0.6 * summary["prune/dense_macs"]


@pytest.mark.slow
def test_the_embedded_attack_learns(tmp_path):
    """Its probabilities, that is: fixed ones need more queries."""
    assert main("fit", ["ppba", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/success_rate"] >= 0.9
    assert summary["test/mean_queries"] < 0.9 * summary["test/mean_queries_fixed"]


@pytest.mark.slow
def test_the_embedded_sub_architectures_know_their_class(tmp_path):
    """And no other one, with fewer channels."""
    assert main("fit", ["nad", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/own_top1"] >= 0.9
    assert summary["test/other_top1"] <= 0.4
    assert summary["test/kept_ratio"] < 0.7


@pytest.mark.slow
def test_the_embedded_search_finds_a_recipe_that_ranks(tmp_path):
    """Afresh, too; and it says first that the control is of no use."""
    assert main("fit", ["bpe_mip", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["mip/best_spearman"] >= max(0.7, summary["mip/median_spearman"] + 0.1)
    assert summary["mip/found_spearman"] >= 0.7  # 0.38 with a shuffled ground truth
    assert summary["mip/pruned_first"] == summary["mip/pruned"][0] == "cutout"
    assert set(summary["mip/pruned"]) < {"cutout", "epochs", "lr"}


@pytest.mark.slow
def test_the_embedded_adaptation_learns_without_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the drawn people go
    assert main("fit", ["ad_cluster", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/mAP"] >= summary["test/mAP_direct"] + 0.15  # 0.10 with shuffled labels
    assert summary["cluster/purity"] >= 0.85  # 0.18 with these


@pytest.mark.slow
def test_the_embedded_distillation_helps_hard_faces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the drawn faces go
    assert main("fit", ["ddl", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/hard_rank1"] >= summary["test/hard_rank1_baseline"] + 0.03  # 0 with ddl_weight 0
    assert summary["test/easy_rank1"] >= 0.8  # the teacher did not drift
    assert summary["similarity/overlap_hard_after"] < summary["similarity/overlap_hard_baseline"]


@pytest.mark.slow
def test_the_embedded_tracker_follows_what_it_never_saw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the drawn videos go
    assert main("fit", ["siamban", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/success_auc"] >= 0.5
    assert summary["test/success_auc"] >= 1.5 * summary["test/success_auc_static"]


@pytest.mark.slow
def test_the_face_detector_learns(tmp_path, monkeypatch):
    """As the page says. Boxes that belong to other pictures give next to nothing: tests/methods/test_asfd.py."""
    monkeypatch.chdir(tmp_path)
    assert main("fit", ["asfd", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    assert read_summary(tmp_path / "run")["test/ap_all"] >= 0.6


@pytest.mark.slow
def test_the_embedded_recipe_grounds_sentences(tmp_path, monkeypatch):
    """As the page says."""
    monkeypatch.chdir(tmp_path)  # where the drawn scenes go
    assert main("fit", ["mcn", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]) == 0
    summary = read_summary(tmp_path / "run")
    assert summary["test/acc50"] >= 0.8
    assert summary["test/miou"] >= 0.6


def test_a_corrupt_picture_in_the_middle_is_one_line(imagenet_root, tmp_path, capsys):
    """Not the first of its split: it shows when training is under way, here in a worker."""
    root = tmp_path / "data"
    shutil.copytree(imagenet_root, root)
    for victim in sorted(root.glob("train/*/*"))[1::2]:
        victim.write_bytes(victim.read_bytes()[:200])
    words = [*ONE_PROCESS, "--trainer.num_sanity_val_steps", "0", "--trainer.max_epochs", "1", "--data.root", str(root)]
    words += ["--data.num_workers", "1", "--data.batch_size", "4", "--data.image_size", "32"]
    words += ["--data.val_fraction", "0.25", "--model.backbone", "tiny", "--trainer.callbacks", "[]"]
    run = ["--run_dir", str(tmp_path / "run"), "--data", "ImageNetDataModule"]
    assert main("fit", ["hrank", *run, *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "cannot read the image" in line
    assert "on_bad_image" in line
    assert line.count("Traceback") == 0
