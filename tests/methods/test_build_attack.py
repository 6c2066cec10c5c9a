"""Attacks by name, and the low frequencies of every size."""

from functools import partial

import pytest
import torch

from lit_methods.ppba import NES, Bandits, PPBAAttack, SimBA, low_frequency_indices
from lit_methods.ppba.build import ATTACKS, build_attack, low_frequencies
from tests.methods import toy_models

TABLE = [(224, 3, 28, 7, 1500), (299, 3, 38, 9, 1500), (64, 3, 15, 7, 430), (32, 3, 11, 7, 230), (28, 1, 7, 7, 32)]
CLASSES_OF = {"ppba": PPBAAttack, "simba": SimBA, "nes": NES, "nes_lf": NES, "bandits": Bandits, "bandits_lf": Bandits}


def never():
    raise AssertionError("this attack has no projection")


# -- low frequencies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels", "freq_dim", "stride", "num"), TABLE)
def test_table_of_sizes(size, channels, freq_dim, stride, num):
    projection = low_frequencies(size, channels)
    draw = torch.Generator().manual_seed(5677)
    assert torch.equal(projection.indices, low_frequency_indices(size, channels, freq_dim, stride, num, draw))
    assert (projection.size, projection.channels, projection.dim) == (size, channels, num)
    _, row, column = torch.unravel_index(projection.indices, (channels, size, size))
    assert max(row.max(), column.max()) < freq_dim


def test_every_size_has_its_low_frequencies():
    for size in range(1, 120):
        projection = low_frequencies(size)
        _, row, column = torch.unravel_index(projection.indices, (3, size, size))
        side = max(int(row.max()), int(column.max())) + 1
        assert 1 <= projection.dim <= 3 * side**2, size
        assert side <= max(7, size / 4 + 4), size  # a quarter, as near as shells of 7 allow


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (224, 1), (48, 3), (28, 3)])
def test_another_number_of_channels_or_size_takes_the_same_part(size, channels):
    projection = low_frequencies(size, channels)
    side = {32: 11, 224: 28, 48: 13, 28: 7}[size]
    assert projection.dim == round(channels * side**2 * 1500 / 2352)


def test_what_is_given_holds():
    assert low_frequencies(32, low_dim=40).dim == 40
    assert low_frequencies(32, freq_dim=4).dim == round(3 * 16 * 1500 / 2352)
    beyond = low_frequencies(32, low_dim=364)  # one more than the lowest shell has
    assert torch.equal(beyond.indices[:363].sort().values, low_frequencies(32, low_dim=363).indices.sort().values)
    assert int(beyond.indices[363] % 1024 // 32) >= 11 or int(beyond.indices[363] % 32) >= 11
    wide = low_frequencies(32, low_dim=32**2 * 3, freq_dim=2, stride=30)
    assert wide.indices.sort().values.tolist() == list(range(3 * 32**2))
    assert not torch.equal(low_frequencies(32, seed=1).indices, low_frequencies(32).indices)


@pytest.mark.parametrize(("size", "freq_dim"), [(48, 12), (96, 24), (100, 10)])
def test_a_stride_that_nobody_gave_divides(size, freq_dim):
    projection = low_frequencies(size, freq_dim=freq_dim)
    _, row, column = torch.unravel_index(projection.indices, (3, size, size))
    assert max(row.max(), column.max()) < freq_dim


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low_dim": 0}, "num=0 must lie between 1 and the 3072"),
        ({"low_dim": 3073}, "num=3073 must lie between 1 and the 3072"),
        ({"freq_dim": 33}, "freq_dim=33 must lie between 1 and the side of the images, 32"),
        ({"freq_dim": 10, "stride": 7}, "stride=7 must divide size - freq_dim = 32 - 10 = 22"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        low_frequencies(32, **arguments)


# -- attacks by name --------------------------------------------------------------------------------------------------


def test_every_name_is_known_here():
    assert ATTACKS == CLASSES_OF


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_runs(name):
    in_pixels = name in ("nes", "bandits")
    projection = never if in_pixels else partial(low_frequencies, 8, freq_dim=4, stride=2)
    options = {"tile": 4} if name == "bandits" else {}
    attack = build_attack(name, projection, eps=1.0, max_queries=60, seed=3, **options)
    assert type(attack) is CLASSES_OF[name]
    assert (attack.eps, attack.max_queries, attack.seed) == (1.0, 60, 3)
    assert (attack.projection is None) == in_pixels
    images, labels = toy_models.picture_batch(3)
    result = attack(toy_models.Linear(), images, labels)
    assert (result.queries > 0).all()
    assert (result.queries <= 60).all()
    assert (result.l2 <= 1.0 + 1e-12).all()
    assert not torch.equal(result.adv, images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pbpa",
            "attack='pbpa' is unknown; did you mean 'ppba'?.*there are ppba, simba, nes_lf, bandits_lf, nes, bandits",
        ),
        ("PPBA", "attack='PPBA' is unknown.*there are ppba"),
        ("bandit", "attack='bandit' is unknown; did you mean 'bandits'"),
        ("", "attack='' is unknown; there are ppba"),
    ],
    ids=str,
)
def test_names_that_nobody_has(name, message):
    with pytest.raises(ValueError, match=message):
        build_attack(name, never)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "ppba",
            {"roh": 0.1},
            "attack_args holds 'roh', which PPBAAttack does not take; did you mean 'rho'?.*takes rho, ",
        ),
        ("nes", {"n_samples": 3}, "attack_args holds 'n_samples', which NES does not take; did you mean 'samples'"),
        ("bandits_lf", {"zzz": 3}, "attack_args holds 'zzz', which Bandits does not take; it takes tile, "),
        ("nes", {"projection": None}, "attack_args holds 'projection', which NES does not take"),
        ("ppba", {"rho": 0.0}, "rho=0.0 must be positive"),
        ("nes", {"max_queries": 9}, "max_queries=9 does not pay for one step of NES, which takes 10"),
    ],
    ids=str,
)
def test_options_that_it_does_not_take(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_attack(name, partial(low_frequencies, 32), **options)
