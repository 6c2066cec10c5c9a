"""The score of a filter against the vectors, however the images are dealt."""

import numpy as np
import pytest
import torch

from lit_methods.metrics import RankScore


def test_running_score_of_the_vectors(vectors):
    reference = np.load(vectors / "hrank" / "rank_accumulate.npz")
    score = RankScore(6)
    for i in range(3):
        score.update(torch.from_numpy(reference[f"batch{i}"]))
        np.testing.assert_allclose(score.compute(), reference[f"running_after{i}"], atol=1e-5)
    np.testing.assert_allclose(score.compute(), reference["final_exact"], rtol=1e-14)
    assert score.compute().dtype == torch.float64
    assert score.images == reference["n_images"]


def test_any_split_and_any_sharing_gives_the_same():
    maps = torch.randn(11, 4, 5, 3).relu() * (torch.rand(11, 4, 1, 1) > 0.3)
    expected = np.mean([[np.linalg.matrix_rank(m) for m in image] for image in maps.numpy()], axis=0)
    for sizes in ([11], [1] * 11, [4, 0, 7]):
        score = RankScore(4)
        for part in maps.split(sizes):
            score.update(part)
        np.testing.assert_allclose(score.compute(), expected, rtol=1e-12)
    ranks = [RankScore(4), RankScore(4)]  # two processes; torchmetrics sums the states as their reductions say
    for score, part in zip(ranks, maps.split([3, 8]), strict=True):
        score.update(part)
    ranks[0].merge_state(ranks[1])
    np.testing.assert_allclose(ranks[0].compute(), expected, rtol=1e-12)


def test_reset_and_mistakes():
    score = RankScore(2)
    with pytest.raises(ValueError, match="seen no image"), pytest.warns(UserWarning, match="compute"):
        score.compute()
    with pytest.raises(ValueError, match=r"maps must be \(N, 2, H, W\), got \(1, 3, 4, 4\)"):
        score.update(torch.zeros(1, 3, 4, 4))
    score.update(torch.ones(1, 2, 4, 4))
    score.reset()
    assert score.images == 0
    assert score.rank_sum.tolist() == [0, 0]
