import pytest

from lit_methods.functional import parse_rates


def test_repetition():
    assert parse_rates("[0.1]+[0.60]*35+[0.0]*2") == [0.1] + [0.6] * 35 + [0.0] * 2
    assert parse_rates(" [0.95] + [ .5 ]*2 ") == [0.95, 0.5, 0.5]
    assert parse_rates("[1.0]+[-0.5]") == [1.0, -0.5]  # ranges are the caller's business


@pytest.mark.parametrize("text", ["", "0.5", "[1]", "[0.5]*", "[0.5]**2", "[0.5,0.6]", "[0.5]-[0.5]", "[.]", "[a.b]"])
def test_other_syntax(text):
    with pytest.raises(ValueError, match=r"cannot read the term.*write \[0\.5\] or \[0\.5\]\*3"):
        parse_rates(text)
