"""What a set of sub-architectures tells, against loops, scipy and all permutations."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch.testing import assert_close

from lit_methods.nad.analysis import cluster_order, confusion_report, mosaic_image, pair_confusion
from lit_methods.nad.functional import most_similar


def random_similarity(classes, seed=0):
    values = torch.rand(classes, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values + values.T) / 2).fill_diagonal_(1)


def random_confusion(classes, seed=1):
    wrong = torch.randint(0, 6, (classes, classes), generator=torch.Generator().manual_seed(seed))
    return wrong + 30 * torch.eye(classes, dtype=torch.int64)


# -- order -------------------------------------------------------------------------------------------------------------


def test_groups_of_similar_classes_lie_side_by_side():
    group = torch.tensor([2, 0, 1, 0, 2, 1, 1, 0, 2])
    similarity = torch.where(group[:, None] == group, 0.8, 0.1) + 0.01 * random_similarity(9)
    order = cluster_order(similarity)
    assert sorted(order) == list(range(9))
    assert len(list(itertools.groupby(group[order].tolist()))) == 3


def test_a_chain_of_classes_is_found_again():
    place = torch.tensor([3, 0, 4, 1, 2])
    order = cluster_order(1 - 0.1 * (place[:, None] - place).abs())
    assert place[order].tolist() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])


@pytest.mark.parametrize("classes", [1, 2, 3, 301])
def test_any_number_of_classes_has_an_order(classes):
    assert sorted(cluster_order(random_similarity(classes))) == list(range(classes))


def test_unknown_similarity_is_none_at_all():
    similarity = torch.tensor([[1.0, math.nan, 0.9], [math.nan, 1.0, 0.1], [0.9, 0.1, 1.0]])
    assert cluster_order(similarity) == cluster_order(similarity.nan_to_num(0)) == [0, 2, 1]


def test_a_similarity_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"similarity must be \(K, K\), got \(2, 3\)"):
        cluster_order(torch.ones(2, 3))


# -- confusions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 3])
def test_errors_are_counted_as_in_a_loop(top):
    similarity, confusion, class_ids = random_similarity(6), random_confusion(9), [7, 0, 3, 8, 2, 5]
    errors = hits = 0
    for row, label in enumerate(class_ids):
        others = sorted((i for i in range(6) if i != row), key=lambda i: -float(similarity[row, i]))
        for column, predicted in enumerate(class_ids):
            if row != column:
                errors += int(confusion[label, predicted])
                hits += int(confusion[label, predicted]) if column in others[:top] else 0
    report = confusion_report(confusion, similarity, class_ids, top, permutations=0)
    assert (report.errors, report.hits, report.chance) == (errors, hits, top / 5)
    assert report.rate == hits / errors
    for end in (report.low, report.high):  # Wilson: where the share lies 1.96 standard errors away
        assert (report.rate - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / errors, rel=1e-9)
    assert report.low < report.rate < report.high
    assert math.isnan(report.p_value)
    assert math.isnan(report.correlation)


def test_p_values_are_those_of_all_permutations():
    similarity, confusion = random_similarity(5, seed=3), random_confusion(5, seed=4)
    wrong = confusion.clone().fill_diagonal_(0)
    near = torch.zeros(5, 5, dtype=torch.bool).scatter_(1, most_similar(similarity, 2), True)
    i, j = np.triu_indices(5, 1)
    rates = pair_confusion(confusion, range(5))[i, j]
    hits, correlations = [], []
    for order in map(list, itertools.permutations(range(5))):
        hits.append(int(wrong[near[order][:, order]].sum()))
        correlations.append(spearmanr(similarity[order][:, order][i, j], rates).statistic)
    report = confusion_report(confusion, similarity, range(5), top=2, permutations=1500)
    assert (report.hits, report.correlation) == (hits[0], pytest.approx(correlations[0]))
    assert report.p_value == pytest.approx(np.mean([found >= hits[0] for found in hits]), abs=0.04)
    expected = np.mean([found >= correlations[0] - 1e-9 for found in correlations])
    assert report.correlation_p_value == pytest.approx(expected, abs=0.04)
    assert report == confusion_report(confusion, similarity, range(5), top=2, permutations=1500)


def test_a_permutation_keeps_rows_and_columns_together():
    """Two groups of classes, confused among themselves: of ten ways to choose the first one, one is the right one."""
    group = torch.tensor([0, 0, 1, 1, 1])
    same = (group[:, None] == group).double()
    confusion = (10 * same + torch.diag(10.0 * (group == 0))).long()  # 30 images of each
    report = confusion_report(confusion, same, range(5), top=1, permutations=1500)
    assert report.correlation == pytest.approx(1)
    assert report.correlation_p_value == pytest.approx(0.1, abs=0.025)


def test_errors_that_fall_to_similar_classes_are_no_accident():
    similarity = random_similarity(12)
    near = torch.zeros(12, 12, dtype=torch.int64).scatter_(1, most_similar(similarity, 3), 1)
    planted = confusion_report(5 * near, similarity, range(12), permutations=200)
    assert (planted.rate, planted.p_value) == (1.0, 1 / 201)
    avoided = confusion_report(5 * (1 - near), similarity, range(12), permutations=200)
    assert (avoided.rate, avoided.p_value) == (0.0, 1.0)
    correlated = confusion_report((100 * similarity).long(), similarity, range(12), permutations=200)
    assert correlated.correlation > 0.9
    assert correlated.correlation_p_value == 1 / 201


def test_without_errors_nothing_is_measured():
    report = confusion_report(9 * torch.eye(4), random_similarity(4), range(4), permutations=10)
    assert (report.errors, report.hits) == (0, 0)
    assert all(
        math.isnan(value) for value in (report.rate, report.low, report.high, report.p_value, report.correlation)
    )
    assert report.chance == 1.0


def test_classes_without_images_have_no_rate():
    confusion = torch.tensor([[6, 2, 2, 0], [1, 9, 0, 0], [0, 0, 0, 0], [5, 0, 0, 5]])
    rates = pair_confusion(confusion, [0, 1, 2, 3])
    assert_close(rates[0], torch.tensor([0.0, 3 / 20, math.nan, 5 / 20], dtype=torch.float64), equal_nan=True)
    similarity = random_similarity(4)
    known = confusion_report(confusion, similarity, range(4), permutations=5)
    tested = [0, 1, 3]
    alone = confusion_report(confusion, similarity[tested][:, tested], tested, top=1, permutations=5)
    assert known.correlation == pytest.approx(alone.correlation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confusion": torch.ones(3, 4)}, r"confusion must be \(C, C\), got \(3, 4\)"),
        ({"class_ids": [0, 1]}, "class_ids must name the 3 classes of similarity, got 2"),
        ({"class_ids": [0, 1, 3]}, "class_ids must lie between 0 and 2"),
        ({"top": 3}, "number=3 of other classes must be between 1 and 2"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    given = {"confusion": torch.eye(3), "similarity": torch.eye(3), "class_ids": [0, 1, 2], "top": 1}
    with pytest.raises(ValueError, match=message):
        confusion_report(**given | options)


# -- mosaics -----------------------------------------------------------------------------------------------------------


def test_a_mosaic_is_four_pictures_row_by_row():
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((9, 30), (40, 7)) * 2]
    size = 16
    tiles = [np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS)) for picture in pictures]
    sheet = np.concatenate([np.concatenate(tiles[:2], axis=1), np.concatenate(tiles[2:], axis=1)])
    expected = np.asarray(Image.fromarray(sheet).resize((size, size), Image.Resampling.BILINEAR))
    found = mosaic_image(pictures, size)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_a_mosaic_has_four_pictures_and_an_even_side():
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="pictures must be four, got 3"):
        mosaic_image([picture] * 3, 8)
    with pytest.raises(ValueError, match="size=7 must be even"):
        mosaic_image([picture] * 4, 7)
