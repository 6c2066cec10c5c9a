"""The recipes of one method on one data set say the same, but for the network, its rates and the published figures.

A recipe stays one file that a reader can copy, without others that it inherits from; this keeps the copies in step.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.small_recipes import RECIPES

OWN = {"description", "paper", "backbone", "rates", "image_size", "beta", "recipe"}  # parts of keys
VICTIM = "model.init_args.model"  # the network of a method that trains none
FOLLOW_RECIPE = {
    "bpe_darts_cifar10": {"batch_size", "max_epochs"}
}  # what a model's ``recipe`` says of data and Trainer


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    if not items:
        yield path, node
    for key, value in items:
        yield from leaves(value, f"{path}.{key}".lstrip("."))


def shared(recipe: str, family: str) -> dict[str, Any]:
    found = dict(leaves(yaml.safe_load(RECIPES[recipe].read_text("utf-8"))))
    own = OWN | FOLLOW_RECIPE.get(family, set())
    return {key: value for key, value in found.items() if key != VICTIM and not own & set(key.split("."))}


def families() -> dict[str, list[str]]:
    found = defaultdict(list)
    for name in RECIPES:
        for data in ("cifar10", "imagenet", "places365"):
            if f"_{data}_" in name:
                found[name.partition(f"_{data}_")[0] + f"_{data}"].append(name)
    return {name: members for name, members in found.items() if len(members) > 1}


@pytest.mark.parametrize(("family", "members"), families().items(), ids=families())
def test_members_differ_in_their_network_alone(family, members):
    first, *others = members
    assert shared(first, family)
    for other in others:
        assert shared(other, family) == shared(first, family), f"{other} and {first}"


def test_there_are_families():
    assert set(families()) >= {"classifier_cifar10", "hrank_cifar10", "hrank_imagenet", "filter_sketch_cifar10"}
