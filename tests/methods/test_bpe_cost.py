"""The cost fit of BPE against the hours that the authors measured."""

import csv
import math
import statistics

import pytest

from lit_methods.bpe_mip.cost import gpu_hours
from lit_methods.bpe_mip.search_space import BPE1, BPE2, PRESETS, Recipe


def test_fit_is_about_a_factor_of_two_from_all_measured_hours(shared):
    with (shared / "data" / "bpe_mip" / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    factors = []
    for trial in trials:
        values = {name: float(trial[name]) for name in BPE1.to_dict()}
        off = abs(math.log(gpu_hours(values, trial["gpu"]) / float(trial["gpu_hours"])))
        factors.append(math.exp(off))
    assert len(factors) == 26
    assert max(factors) < 2.02  # test7, timed on a busy machine
    assert statistics.median(factors) < 1.13


def test_fit_is_the_formula_of_the_spec():
    recipe = Recipe(epochs=20, batch_size=256, lr=0.06, layers=10, fp=16, channels=12, cutout=16, image_size=32)
    hours = math.exp(-5.79) * 20**0.95 * 10**0.93 * 12**0.22 * 32**0.54 * 256**-0.49 * 0.93 * 0.77
    assert gpu_hours(recipe, "2080ti") == pytest.approx(hours, rel=1e-12)
    assert gpu_hours(recipe) == pytest.approx(hours / 0.77, rel=1e-12)


def test_names_that_are_missing_are_those_of_bpe1():
    assert gpu_hours({"epochs": 30, "layers": 16, "channels": 16}) == gpu_hours(BPE2) == gpu_hours("bpe2")
    assert gpu_hours({}) == gpu_hours(BPE1)
    assert gpu_hours({"lr": 0.5, "cutout": 16}) == gpu_hours(BPE1)


def test_presets_cost_what_their_order_says():
    hours = {name: gpu_hours(recipe) for name, recipe in PRESETS.items()}
    assert sorted(hours, key=hours.get) == ["BPE1", "BPE2", "DARTS_DEFAULT", "FULL"]


@pytest.mark.parametrize(
    ("recipe", "gpu", "message"),
    [
        (BPE1, "a6000", "gpu='a6000' was not measured; there are v100, 2080ti"),
        (BPE1, "v10", "did you mean 'v100'"),
        ({"epoch": 3}, "v100", "recipe has no 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "v100", "epochs=0: give a whole number of at least 1"),
        ("BPE3", "v100", "there is no recipe 'BPE3'; did you mean"),
        (7, "v100", "recipe=7: give one of BPE1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(recipe, gpu, message):
    with pytest.raises(ValueError, match=message):
        gpu_hours(recipe, gpu)
