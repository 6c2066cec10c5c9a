"""Sentences that a user asks with, and what a vocabulary makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from typing import NamedTuple

from lit_methods.functional.suggestions import nearest, shorten
from lit_methods.functional.words import clean_sentence, split_words


class OwnSentence(NamedTuple):
    """A sentence about a picture.

    Args:
        text: as it was typed, on one line.
        words: those that count, clean, with a blank between them.
        unknown: of these, the ones outside of the vocabulary.
        cut: words after those that count.
    """

    text: str
    words: str
    unknown: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


def own_sentence(text: str, known: Collection[str], max_words: int, where: str = "text") -> OwnSentence:
    """What becomes of a sentence as somebody typed it.

    Args:
        text: any text.
        known: words of the vocabulary.
        max_words: so many words count, the first ones.
        where: what the sentence is called in a message.

    Raises:
        ValueError: it has no words, or the vocabulary has none of them: then the answer could not depend on it.

    Example:
        >>> own_sentence("The mauve circle!", {"circle", "red", "the"}, max_words=15)
        OwnSentence(text='The mauve circle!', words='the mauve circle', unknown=('mauve',), cut=())
    """
    text = " ".join(text.split())
    words = split_words(clean_sentence(text))
    if not words:
        raise ValueError(f"{where}={text!r} has no words; say what to look for, such as 'the man in red'")
    words, cut = words[:max_words], words[max_words:]
    unknown = tuple(dict.fromkeys(word for word in words if word not in known))
    if not any(word in known for word in words):
        hints = (hint for word in unknown if (hint := nearest(word, known)))
        raise ValueError(
            f"{where}={_short(text)!r}: the checkpoint knows none of these words, so that its answer could "
            f"not depend on them; use words that it was trained with{next(hints, '')}"
        )
    return OwnSentence(text, " ".join(words), unknown, tuple(cut))


def warn_of(sentences: Iterable[OwnSentence], max_words: int, stacklevel: int = 2) -> None:
    """Warn of words that do not count: one warning of those that are cut off, one of those that are not known.

    Args:
        sentences: all that are asked.
        max_words: of a sentence, so many words count.
        stacklevel: of the warnings, see ``warnings.warn``.

    Example:
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     warn_of([own_sentence("the mauve circle", {"circle", "the"}, 15)], 15)
        >>> print(told[0].message)
        text: words outside of the checkpoint's vocabulary, which say nothing to it (1): mauve
    """
    asked = list(sentences)
    for sentence in asked:
        if sentence.cut:
            warnings.warn(
                f"text={_short(sentence.text)!r}: only the first {max_words} words of a sentence "
                f"count, not {shorten(sentence.cut)}",
                stacklevel=stacklevel + 1,
            )
    if unknown := list(dict.fromkeys(word for sentence in asked for word in sentence.unknown)):
        warnings.warn(
            f"text: words outside of the checkpoint's vocabulary, which say nothing to it ({len(unknown)}): "
            f"{shorten(unknown, 20)}",
            stacklevel=stacklevel + 1,
        )


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
