"""Which word has which number, and which words have a vector."""

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_methods.functional.glove import read_glove
from lit_methods.functional.words import number_words, split_words, word_ids


class Vocabulary:
    """The words of a network, which all data sets of a data module share.

    Args:
        words: in the order of their ids, which begin at 2; 0 is padding and 1 an unknown word.
        max_words: length of a sentence of ids.

    Example:
        >>> Vocabulary(["blue", "red"], 4).tokens("red purple")
        [3, 1, 0, 0]
    """

    def __init__(self, words: Sequence[str], max_words: int) -> None:
        self.max_words = max_words
        self.use(words)

    def use(self, words: Sequence[str]) -> None:
        """Take other words, for everyone who holds this vocabulary.

        Args:
            words: in the order of their ids.

        Raises:
            ValueError: a word comes twice.
        """
        self.ids = number_words(words)
        self.words = list(words)

    def tokens(self, sentence: str) -> list[int]:
        """The ids of a sentence, ``max_words`` of them.

        Args:
            sentence: words with white space between them.
        """
        return word_ids(sentence, self.ids, self.max_words)

    def unknown(self, sentences: Iterable[str]) -> Counter[str]:
        """Words that are not in the vocabulary and how often they come, the most frequent first.

        Args:
            sentences: to look through.
        """
        counted = Counter(word for sentence in sentences for word in split_words(sentence) if word not in self.ids)
        return Counter(dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))))


class WordVectors:
    """Vectors of a GloVe file, of the words that have been asked for; the file is read when new words are.

    Args:
        path: the file, see :func:`~lit_methods.functional.glove.read_glove`.
        cache: folder for the vectors that were found, so that the next run need not read the file; ``None`` is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "glove.txt").write_text("red 1 0.5\\nblue -1 2\\n")
        ...     vectors = WordVectors(Path(folder, "glove.txt"))
        ...     vectors.found(["red", "mauve"]), vectors.of(["mauve", "red"]).tolist()
        (['red'], [[0.0, 0.0], [1.0, 0.5]])
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path, self.cache = path, cache
        self._asked: set[str] = set()
        self._rows: dict[str, NDArray[np.float32]] = {}
        self._size: int | None = None

    def found(self, words: Iterable[str]) -> list[str]:
        """Those of the words that the file has, in their order.

        Args:
            words: to look for.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged.
        """
        words = list(words)
        self._ask(words)
        return [word for word in words if word in self._rows]

    def of(self, words: Sequence[str]) -> Tensor:
        """Vectors ``(n, E)`` float32, zeros for words that the file does not have.

        Args:
            words: to look for.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged.
        """
        table = np.zeros((len(words), self._ask(words)), np.float32)
        for row, word in enumerate(words):
            if word in self._rows:
                table[row] = self._rows[word]
        return torch.from_numpy(table)

    def _ask(self, words: Iterable[str]) -> int:
        """Look for words that nobody asked for yet; returns the length of a vector."""
        new = sorted(set(words) - self._asked)
        if new or self._size is None:
            found, vectors = cached_glove(self.path, new, self.cache)
            self._rows.update(zip(found, vectors, strict=True))
            self._asked.update(new)
            self._size = vectors.shape[1]
        return self._size


def cached_glove(path: Path, words: Sequence[str], cache: Path | None) -> tuple[list[str], NDArray[np.float32]]:
    """:func:`~lit_methods.functional.glove.read_glove`, with what it found kept in a folder.

    What is kept goes by the file's name, size and time and by the words. Where the folder cannot be written to, or what
    is in it cannot be read, the file itself is read.

    Args:
        path: the file.
        words: wanted.
        cache: the folder; ``None`` keeps nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "glove.txt").write_text("red 1 0.5\\n")
        ...     first = cached_glove(Path(folder, "glove.txt"), ["red"], Path(folder, "kept"))
        ...     again = cached_glove(Path(folder, "glove.txt"), ["red"], Path(folder, "kept"))
        >>> first[0] == again[0], again[1].tolist()
        (True, [[1.0, 0.5]])
    """
    if cache is None or not path.is_file():
        return read_glove(path, words)
    state = path.stat()
    key = "\n".join((path.name, str(state.st_size), str(state.st_mtime_ns), *words))
    kept = cache / f"glove_{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    # missing or damaged: made anew
    with (
        suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        np.load(kept, allow_pickle=False) as arrays,
    ):
        return arrays["words"].tolist(), arrays["vectors"]
    found, vectors = read_glove(path, words)
    part = kept.with_name(f".{kept.stem}.{os.urandom(8).hex()}.npz")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(part, words=np.array(found, np.str_), vectors=vectors)
        os.replace(part, kept)
    except OSError:
        with suppress(OSError):
            part.unlink()
    return found, vectors
