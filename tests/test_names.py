"""What means the same is called the same: arguments, keys of recipes, keys of pictures and tables."""

import ast
import inspect
from functools import cache
from pathlib import Path

import pytest
import yaml

import callbacks
import datamodules
import lit_methods
from lit_methods.cli.recipes import find_recipes
from tests.logged_keys import FOLDER, logged_keys

RECIPES = find_recipes()
GLOSSARY = {  # our name -> what others call it
    "at_epoch": "epoch on_epoch start_at",
    "backbone": "arch architecture net network",
    "base_checkpoint": "checkpoint ckpt ckpt_path init_weights pretrained pretrained_weights weights",
    "batch_size": "batch bs train_batch_size",
    "class_names": "classes label_names labels",
    "dropout": "drop drop_rate dropout_rate p_drop",
    "eval_batch_size": "test_batch_size val_batch_size",
    "every_n_epochs": "every every_epochs freq interval period",
    "every_n_steps": "every_steps log_every",
    "gamma": "decay_rate lr_decay lr_gamma",
    "image_size": "im_size img_size resolution",
    "in_memory": "cache preload",
    "input_size": "in_size input_shape",
    "lr": "base_lr initial_lr learning_rate",
    "margin": "m",
    "mean": "means pixel_mean",
    "milestones": "lr_milestones lr_steps",
    "momentum": "mom",
    "num_classes": "class_count nb_classes num_identities num_ids num_labels",
    "num_images": "max_images nb_images",
    "num_workers": "nb_workers workers",
    "on_bad_image": "bad_images on_error skip_bad",
    "root": "data_dir data_path data_root dir directory folder path",
    "scale": "s",
    "seed": "random_seed random_state rng",
    "std": "pixel_std stds",
    "threshold": "thr thresh",
    "val_fraction": "val_ratio val_size val_split valid_fraction",
    "weight_decay": "decay l2 wd",
}
COUNTS = {"n_critic", "n_estimators"}  # StarGAN's and scikit-learn's own names; all other counts are num_*

LISTED_UNDER = {  # recipes of classes that log what another recipe's run shows, by the beginning of their names
    "bpe_cifar10_full": "hrank",  # an ImageClassifier
    "bpe_evolution": "bpe_random",
    "bpe_reinforce": "bpe_random",
    "camera_stargan": "ad_cluster",
    "classifier": "hrank",
    "reid_source": "ad_cluster",
}
NOT_SHOWN = {  # keys that only runs as in the paper have, and why
    "ad_cluster_duke_to_market": ("test/mAP_direct test/rank1_direct", "DirectTransfer, a callback of these recipes"),
    "ad_cluster_market_to_duke": ("test/mAP_direct test/rank1_direct", "likewise"),
    "ddl_faces_iresnet50": ("test/d1_rank1 test/d2_rank1 test/d3_rank1 test/scface_rank1", "named by data.test_sets"),
    "ddl_faces_iresnet50_pretrain": ("test/lfw_accuracy test/cfp_fp_accuracy test/cplfw_accuracy", "likewise"),
}

SHOWN = ("picture", "figure", "overlay", "film")  # methods of RunReport


@cache
def arguments() -> dict[str, str]:
    """Every argument of a public class, and one of the classes."""
    found = {}
    for package in (lit_methods, datamodules, callbacks):
        for name in package.__all__:
            if inspect.isclass(made := getattr(package, name)):
                found |= dict.fromkeys(inspect.signature(made).parameters, name)
    return found


def test_arguments_have_one_name():
    others = {other: ours for ours, names in GLOSSARY.items() for other in names.split()}
    assert {f"{arguments()[name]}.{name}: {others[name]}" for name in others.keys() & arguments().keys()} == set()
    assert GLOSSARY.keys() <= arguments().keys()
    assert {name for name in arguments() if name.startswith(("n_", "nb_"))} == COUNTS


def listed(recipe: str) -> str:
    """The list that a recipe's keys are in."""
    known = {path.stem: path.stem for path in FOLDER.glob("*.txt")} | LISTED_UNDER
    return known[max((name for name in known if f"{recipe}_".startswith(f"{name}_")), key=len)]


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_keys_of_a_recipe_are_keys_of_the_run(recipe):
    config = yaml.safe_load(RECIPES[recipe].read_text("utf-8"))
    monitored = (config.get("checkpoint") or {}).get("monitor")
    wanted = {key for key in config.get("paper") or {} if "/" in key} | ({monitored} if monitored else set())
    missing, _why = NOT_SHOWN.get(recipe, ("", ""))
    assert wanted - logged_keys(listed(recipe)).keys() == set(missing.split())


def test_a_table_has_no_key_of_a_picture_unless_it_says_so():
    """W&B shows one kind of thing under a key."""
    keys: dict[str, set[str]] = {"picture": set(), "table": set(), "table_beside": set()}
    for path in Path(callbacks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) > 2:
                kind = "picture" if node.func.attr in SHOWN else node.func.attr
                if kind in keys and path.name != "report.py":
                    keys[kind].add(ast.unparse(node.args[1]))
    assert len(keys["picture"]) > 20
    assert keys["table"] & keys["picture"] == set()
    assert len(keys["table_beside"]) >= 5
    assert keys["table_beside"] - keys["picture"] == {"'search/evaluations'"}  # which is a number's
