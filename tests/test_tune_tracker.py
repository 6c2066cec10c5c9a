"""The search of a tracker's constants: halves, and how many trials are run by whoever takes part."""

from types import SimpleNamespace

import pytest

from examples import tune_tracker
from examples.tune_tracker import RANGES, halves, own_constants, tune

OWN = {"penalty_k": 0.1, "window_influence": 0.4, "tracker_lr": 0.5}


@pytest.fixture
def tried(monkeypatch):
    """The constants that were scored, in turn; the best ``lr`` is 0.7, and no video is tracked."""
    found = []

    def score(module, videos, constants, benchmark):
        found.append(constants)
        return -abs(constants["lr"] - 0.7)

    monkeypatch.setattr(tune_tracker, "score", score)
    return found


def search(trials, storage=None):
    return tune(SimpleNamespace(hparams=OWN), [], "lasot", trials, 0, storage)


@pytest.mark.parametrize("trials", [1, 4])
def test_as_many_trials_are_run_as_asked_for_and_the_first_is_the_module_s_own(tried, trials):
    pytest.importorskip("optuna")
    best = search(trials)
    assert len(tried) == trials
    assert tried[0] == own_constants(SimpleNamespace(hparams=OWN))
    assert best == min(tried, key=lambda constants: abs(constants["lr"] - 0.7))
    assert all(low <= constants[name] <= high for constants in tried for name, (low, high) in RANGES.items())
    seen = list(tried)
    search(trials)
    assert tried[trials:] == seen  # the seed decides


def test_a_search_that_goes_on_counts_what_is_there_and_draws_anew(tried):
    storage = pytest.importorskip("optuna").storages.InMemoryStorage()
    for trials in (3, 5, 5):
        best = search(trials, storage)
    assert len(tried) == 5
    assert len({constants["lr"] for constants in tried}) == 5
    assert best == min(tried, key=lambda constants: abs(constants["lr"] - 0.7))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_halves_share_no_video_and_miss_none(count):
    searched, kept = halves(range(count), 0)
    assert sorted([*searched, *kept]) == list(range(count))
    assert len(searched) - len(kept) == count % 2
