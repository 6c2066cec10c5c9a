"""Sentences as numbers."""

import pytest

from lit_methods.functional.words import PADDING, UNKNOWN, clean_sentence, number_words, split_words, word_ids

IDS = number_words(["blue", "man's", "red"])


def test_ids_begin_after_padding_and_unknown():
    assert (PADDING, UNKNOWN, IDS) == (0, 1, {"blue": 2, "man's": 3, "red": 4})
    assert number_words([]) == {}


@pytest.mark.parametrize("words", [["a", "a"], ["a", "b", "a"]])
def test_a_word_that_comes_twice_is_refused(words):
    with pytest.raises(ValueError, match="'a' twice"):
        number_words(words)


@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("red blue", [4, 2, 0]),
        (" RED\tblue  red ", [4, 2, 4]),
        ("red mauve", [4, 1, 0]),
        ("red red red blue", [4, 4, 4]),
        (" ".join(["blue"] * 200), [2, 2, 2]),
        ("", [0, 0, 0]),
        ("  ", [0, 0, 0]),
    ],
)
def test_a_sentence_is_cut_off_or_filled_up(sentence, ids):
    assert word_ids(sentence, IDS, 3) == ids


def test_sentences_of_data_sets_are_split_at_white_space_alone():
    assert split_words("Man's t-shirt, left") == ["man's", "t-shirt,", "left"]


@pytest.mark.parametrize(
    ("typed", "clean"),
    [
        ("The man's hat, on the LEFT!", "the man's hat on the left"),
        ("  a\n b\t", "a b"),
        ("the t-shirt_thing (2nd)", "the t shirt thing 2nd"),
        ("the woman\u2019s 'red' bag'", "the woman's red bag"),
        ("cafe\u0301 au lait", "caf\u00e9 au lait"),
        ("?! ... '", ""),
        ("", ""),
    ],
)
def test_typed_sentences_become_like_those_of_data_sets(typed, clean):
    assert clean_sentence(typed) == clean
    assert clean_sentence(clean) == clean
