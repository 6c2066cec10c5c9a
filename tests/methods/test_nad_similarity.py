"""How similar sub-architectures are: the official figures, plain loops, and what they do not depend on."""

import pytest
import torch
from torch.testing import assert_close

from lit_methods.nad.functional import (
    concept_diversity,
    most_similar,
    open_channels,
    subarchitecture_similarity,
)
from tests.vector_files import tensors

NAN = float("nan")


def load(vectors, name):
    return tensors(vectors / "nad" / f"{name}.npz")


def layers(official, name):
    return [official[f"{name}{i}"] for i in range(len(official["sizes"]))]


def random_masks(classes=6, sizes=(5, 16, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(classes, c, generator=generator) > 0.5 for c in sizes]


@pytest.mark.parametrize("name", ["similarity", "similarity_empty"])
def test_binary_gates_are_the_official_ones(vectors, name):
    official = load(vectors, name)
    for logits, binary in zip(layers(official, "logits"), layers(official, "binary"), strict=True):
        assert torch.equal(open_channels(logits), binary.bool())


def test_similarity_is_the_official_one(vectors):
    official = load(vectors, "similarity")
    masks = layers(official, "binary")
    found, by_layer = subarchitecture_similarity(masks), subarchitecture_similarity(masks, per_layer=True)
    assert found.dtype == by_layer.dtype == torch.float64
    assert_close(by_layer, official["iou_per_layer"], rtol=0, atol=1e-7)
    assert_close(found, official["similarity"], rtol=0, atol=1e-7)
    assert_close(found, by_layer.mean(0), rtol=0, atol=1e-12)
    assert torch.equal(most_similar(found), official["top3"])


def test_empty_masks_give_the_official_nan_or_count_as_equal(vectors):
    official = load(vectors, "similarity_empty")
    masks, iou = layers(official, "binary"), official["iou_per_layer"]
    assert official["similarity"].isnan().any()
    assert not official["similarity"].isnan().all()
    wanted = {"rtol": 0, "atol": 1e-7, "equal_nan": True}
    assert_close(subarchitecture_similarity(masks, NAN), official["similarity"], **wanted)
    assert_close(subarchitecture_similarity(masks, NAN, per_layer=True), iou, **wanted)
    for value in (1.0, 0.0, 0.25):
        filled = iou.nan_to_num(nan=value)
        assert_close(subarchitecture_similarity(masks, value, per_layer=True), filled, rtol=0, atol=1e-7)
        assert_close(subarchitecture_similarity(masks, empty_value=value), filled.mean(0), rtol=0, atol=1e-7)
    assert torch.equal(subarchitecture_similarity(masks), subarchitecture_similarity(masks, 1.0))


def test_similarity_is_that_of_a_plain_loop():
    masks = random_masks()
    masks[2][1] = masks[2][4] = False
    expected = torch.empty(3, 6, 6, dtype=torch.float64)
    for layer, mask in enumerate(masks):
        sets = [set(row.nonzero().flatten().tolist()) for row in mask]
        for i, a in enumerate(sets):
            for j, b in enumerate(sets):
                expected[layer, i, j] = len(a & b) / len(a | b) if a | b else 1
    assert torch.equal(subarchitecture_similarity(masks, per_layer=True), expected)
    assert_close(subarchitecture_similarity(masks), expected.mean(0), rtol=1e-14, atol=0)


def test_similarity_is_symmetric_between_0_and_1_and_1_with_itself():
    for per_layer in (False, True):
        found = subarchitecture_similarity(random_masks(classes=9, seed=4), per_layer=per_layer)
        assert torch.equal(found, found.transpose(-1, -2))
        assert found.min() >= 0
        assert found.max() == 1
        assert (found.diagonal(dim1=-2, dim2=-1) == 1).all()
    apart = subarchitecture_similarity([torch.eye(4)])
    assert torch.equal(apart, torch.eye(4, dtype=torch.float64))


def test_similarity_does_not_depend_on_the_order_of_channels():
    masks = random_masks()
    shuffled = [m[:, torch.randperm(m.shape[1])] for m in masks]
    assert torch.equal(subarchitecture_similarity(masks), subarchitecture_similarity(shuffled))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16])
def test_masks_may_be_of_any_type(dtype):
    masks = random_masks()
    assert torch.equal(subarchitecture_similarity([m.to(dtype) for m in masks]), subarchitecture_similarity(masks))


def test_wide_layers_are_counted_exactly_under_autocast():
    masks = [torch.zeros(2, 2048, dtype=torch.bool)]
    masks[0][0, :1001], masks[0][1, 1000:] = True, True
    expected = subarchitecture_similarity(masks)
    assert expected[0, 1] == 1 / 2048
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(subarchitecture_similarity(masks), expected)


def test_among_equally_similar_classes_the_lower_comes_first():
    equal = torch.full((5, 5), 0.5, dtype=torch.float64)
    assert most_similar(equal, 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert most_similar(equal).dtype == torch.int64
    assert equal.unique().tolist() == [0.5]  # not changed


def test_a_class_is_not_among_its_own_neighbours_and_nan_comes_last():
    similarity = torch.tensor([[1, NAN, 0.0], [NAN, NAN, 0.3], [0.0, 0.3, 1]])
    assert most_similar(similarity, 2).tolist() == [[2, 1], [2, 0], [1, 0]]
    assert similarity.isnan().sum() == 3


def test_diversity_is_one_less_the_mean_over_pairs():
    found = subarchitecture_similarity(random_masks())
    pairs = [float(found[i, j]) for i in range(6) for j in range(i + 1, 6)]
    assert concept_diversity(found) == pytest.approx(1 - sum(pairs) / len(pairs), rel=1e-14)
    assert isinstance(concept_diversity(found), float)
    assert concept_diversity(torch.ones(3, 3)) == 0
    assert concept_diversity(torch.eye(3)) == 1
