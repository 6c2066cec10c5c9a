"""The short form of rates is read and written without loss."""

import numpy as np
import pytest

from lit_methods.functional import parse_rates
from lit_methods.functional.rates import format_rates, round_up


def test_repetition():
    assert parse_rates("[0.1]+[0.60]*35+[0.0]*2") == [0.1] + [0.6] * 35 + [0.0] * 2
    assert parse_rates(" [0.95] + [ .5 ]*2 ") == [0.95, 0.5, 0.5]
    assert parse_rates("[1.0]+[-0.5]") == [1.0, -0.5]  # ranges are the caller's business


@pytest.mark.parametrize("text", ["", "0.5", "[1]", "[0.5]*", "[0.5]**2", "[0.5,0.6]", "[0.5]-[0.5]", "[.]", "[a.b]"])
def test_other_syntax(text):
    with pytest.raises(ValueError, match=r"cannot read the term.*write \[0\.5\] or \[0\.5\]\*3"):
        parse_rates(text)


@pytest.mark.parametrize(
    ("rates", "text"),
    [
        ([0.5], "[0.5]"),
        ([1, 1, 0], "[1.0]*2+[0.0]"),
        ([0.9] * 3 + [0.4] * 24 + [0.3] * 24 + [0.9] * 3, "[0.9]*3+[0.4]*24+[0.3]*24+[0.9]*3"),
        ([1e-4, 0.0625], "[0.0001]+[0.0625]"),
        ([], ""),
    ],
)
def test_short_form(rates, text):
    assert format_rates(rates) == text


@pytest.mark.parametrize(
    "rates", [[1 / 3] * 2, [1e-12], [0.1 + 0.2], [1 - 1 / 10_000, 0.0], np.float64([0.7, 0.7])], ids=str
)
def test_short_form_is_read_again_as_the_same_numbers(rates):
    assert parse_rates(format_rates(rates)) == list(rates)


def test_the_whole_grid_of_a_budget_survives():
    rates = [i / 10_000 for i in range(10_001)]
    assert parse_rates(format_rates(rates)) == rates


@pytest.mark.parametrize("most", [1, 7, 8, 20])
def test_round_up(most):
    for channels in range(1, most + 1):
        for multiple in (1, 3, 8, 32):
            rounded = round_up(channels, multiple, most)
            allowed = [n for n in range(1, most + 1) if n >= channels and n % multiple == 0] + [most]
            assert rounded == allowed[0]
