"""Sentences as numbers: words, and their places in a vocabulary."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

PADDING, UNKNOWN = 0, 1  # ids of no word and of a word outside of the vocabulary
FIRST = 2  # id of the first word of a vocabulary

_APOSTROPHES = str.maketrans("\u2019\u02bc\uff07", "'''")
_NO_WORD = re.compile(r"[^\w']|_|(?<!\w)'|'(?!\w)")  # apostrophes stay inside of words


def split_words(sentence: str) -> list[str]:
    """The words of a sentence that is clean already, as those of the data sets are: lower case, split at white space.

    Args:
        sentence: any text.

    Source:
        MCN's official code, which splits the field ``sent`` on white space.

    Example:
        >>> split_words("the Man  in red")
        ['the', 'man', 'in', 'red']
    """
    return sentence.lower().split()


def clean_sentence(text: str) -> str:
    """A sentence as somebody typed it in the form of the data sets: lower case, words with a blank between them.

    Punctuation becomes a blank, but for apostrophes inside of words; curly ones become straight.

    Args:
        text: any text, such as ``"The man's hat, on the left!"``.

    Example:
        >>> clean_sentence("  The man's hat, on the LEFT!  ")
        "the man's hat on the left"
    """
    plain = unicodedata.normalize("NFC", text).translate(_APOSTROPHES).lower()
    return " ".join(_NO_WORD.sub(" ", plain).split())


def number_words(vocabulary: Iterable[str]) -> dict[str, int]:
    """Ids of the words of a vocabulary, from 2 on; 0 is padding and 1 an unknown word.

    Args:
        vocabulary: words in the order of their ids.

    Raises:
        ValueError: a word comes twice.

    Example:
        >>> number_words(["blue", "red"])
        {'blue': 2, 'red': 3}
    """
    ids: dict[str, int] = {}
    for word in vocabulary:
        if word in ids:
            raise ValueError(f"vocabulary has the word {word!r} twice; name each word once")
        ids[word] = len(ids) + FIRST
    return ids


def word_ids(sentence: str, ids: Mapping[str, int], max_words: int) -> list[int]:
    """The ids of the words of a sentence, cut off or filled up with padding.

    Args:
        sentence: clean already, see :func:`split_words`.
        ids: word to id, see :func:`number_words`.
        max_words: length of what is returned; words after these are left out.

    Returns:
        ``max_words`` ids, ``UNKNOWN`` for words that ``ids`` lacks.

    Example:
        >>> word_ids("red purple", {"blue": 2, "red": 3}, 4)
        [3, 1, 0, 0]
    """
    known = [ids.get(word, UNKNOWN) for word in split_words(sentence)[:max_words]]
    return known + [PADDING] * (max_words - len(known))
