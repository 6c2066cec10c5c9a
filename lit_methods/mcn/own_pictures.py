"""The user's own pictures with their sentences, all sentences about one picture together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_methods.functional.letterbox import letterbox_image
from lit_methods.functional.pictures import BadImageError, read_rgb
from lit_methods.functional.text_lines import read_lines
from lit_methods.inference import find_pictures
from lit_methods.mcn.own_words import OwnSentence

LISTS = (".tsv", ".txt")  # endings of lists of pictures and sentences
AT_ONCE = 64  # sentences about one picture that share a batch


@dataclass(frozen=True)
class OwnPicture:
    """A picture that is to be searched.

    Args:
        path: of the file.
        name: what is written about it is called so; no other picture of the same prediction has it.
        sentences: to search it for.
    """

    path: Path
    name: str
    sentences: tuple[OwnSentence, ...]


def own_pictures(
    paths: Sequence[str | Path], texts: Sequence[str], ask: Callable[[str, str], OwnSentence]
) -> tuple[list[OwnPicture], dict[Path, str]]:
    r"""Find the pictures and their sentences, and decode each picture once.

    Args:
        paths: pictures, and folders, which are searched for pictures: they get all of ``texts``. Also lists,
            ``.tsv`` or ``.txt``, with lines of a picture, relative to the list's folder, a tab, and a sentence.
        texts: sentences.
        ask: from a sentence, and what it is called in a message, to what becomes of it.

    Returns:
        The pictures that can be searched, those of lists last, each once; and for each path that cannot, the reason in
        one line.

    Raises:
        FileNotFoundError: none of ``paths`` exists.
        ValueError: there is no picture among them; pictures have no sentence, or sentences no picture; a line of a list
            does not parse; or what ``ask`` raises.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (6, 4)).save(Path(folder, "a.png"))
        ...     _ = Path(folder, "list.tsv").write_text("a.png\tthe dog\nb.png\ta cat\n")
        ...     told = own_pictures([Path(folder, "list.tsv")], [], lambda text, where: OwnSentence(text, text))
        >>> [(picture.name, picture.sentences[0].text) for picture in told[0]], [path.name for path in told[1]]
        ([('a', 'the dog')], ['b.png'])
    """
    given = list(dict.fromkeys(map(Path, paths)))
    lists = [path for path in given if _is_list(path)]
    others = [path for path in given if path not in lists]
    if others and not texts:
        raise ValueError(
            f"text: missing for input={str(others[0])!r}; give --text 'the man in red', once for each sentence, or a "
            f"list of pictures and sentences as --input ({', '.join(LISTS)})"
        )
    if texts and not others:
        raise ValueError(f"text={texts[0]!r} has no picture: {str(lists[0])!r} and its like bring their own sentences")
    asked = [ask(text, "text") for text in texts]
    faults: dict[Path, str] = {}
    names: dict[Path, Path] = {}  # by resolved path, as it was given first
    wanted: dict[Path, dict[str, OwnSentence]] = {}
    if others:
        there = [path for path in others if path.exists()]
        faults = {path: f"input={str(path)!r} does not exist" for path in others if path not in there}
        for path in find_pictures(there or others):
            known = names.setdefault(path.resolve(), path)
            wanted.setdefault(known, {}).update({sentence.text: sentence for sentence in asked})
    for path in lists:
        for file, text, where in _listed(path):
            sentence = ask(text, where)
            known = names.setdefault(file.resolve(), file)
            wanted.setdefault(known, {}).setdefault(sentence.text, sentence)
    pictures: list[OwnPicture] = []
    taken: set[str] = set()
    for path, sentences in wanted.items():
        try:
            read_rgb(path)
        except BadImageError as error:
            faults[path] = str(error)
            continue
        pictures.append(OwnPicture(path, _unique(path.stem, taken), tuple(sentences.values())))
    return pictures, faults


def listed_texts(paths: Sequence[str | Path]) -> list[str]:
    r"""The sentences of the lists among some paths, as they stand there.

    Args:
        paths: as for :func:`own_pictures`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "list.tsv").write_text("a.png\tThe dog!\n")
        ...     listed_texts(["b.png", Path(folder, "list.tsv")])
        ['The dog!']
    """
    return [text for path in map(Path, paths) if _is_list(path) for _, text, _ in _listed(path)]


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LISTS and path.is_file()


def _listed(path: Path) -> Iterator[tuple[Path, str, str]]:
    """Picture, sentence, and what the sentence is called in a message."""
    lines = read_lines(path)
    if not lines:
        raise ValueError(f"input={str(path)!r} is empty; expected lines of a picture, a tab, and a sentence")
    for line in lines:
        name, tab, text = line.text.partition("\t")
        if not tab or not name.strip():
            raise line.fault("expected a picture, a tab, and a sentence")
        yield path.parent / name.strip(), text, f"{line.where}: text"


def _unique(name: str, taken: set[str]) -> str:
    number, found = 1, name
    while found.lower() in taken:  # disks may ignore case
        number += 1
        found = f"{name}-{number}"
    taken.add(found.lower())
    return found


def sentence_batches(
    picture: Image.Image,
    sentences: Sequence[OwnSentence],
    size: int,
    tokens_of: Callable[[Sequence[str]], Tensor],
    file: str | None = None,
) -> Iterator[dict[str, Any]]:
    """One picture with its sentences as batches for ``predict_step``, a row for each sentence.

    All rows show one letterboxed picture, which lies in memory once.

    Args:
        picture: RGB.
        sentences: about it.
        size: side of the network's input.
        tokens_of: from clean sentences to ids of their words.
        file: what the picture is called.

    Yields:
        ``image`` (B, 3, S, S) in [0, 1], ``tokens``, ``size``, ``image_id`` and ``sentence`` as in an evaluation; where
        it is known ``file``, B times.

    Example:
        >>> picture, asked = Image.new("RGB", (6, 4)), [OwnSentence("The dog!", "the dog")]
        >>> (batch,) = sentence_batches(picture, asked, 32, lambda texts: torch.ones(len(texts), 3, dtype=torch.int64))
        >>> batch["image"].shape, batch["size"].tolist(), batch["sentence"]
        (torch.Size([1, 3, 32, 32]), [[4, 6]], ['The dog!'])
    """
    image = torch.from_numpy(letterbox_image(picture, size)).float() / 255
    for start in range(0, len(sentences), AT_ONCE):
        part = sentences[start : start + AT_ONCE]
        batch = {
            "image": image.expand(len(part), -1, -1, -1),
            "tokens": tokens_of([sentence.words for sentence in part]),
            "size": torch.tensor([[picture.height, picture.width]] * len(part)),
            "image_id": torch.zeros(len(part), dtype=torch.int64),
            "sentence": [sentence.text for sentence in part],
        }
        yield batch if file is None else batch | {"file": [file] * len(part)}


class OwnBatches:
    """The pictures of a prediction as batches, one picture in each, and what is needed to write about it.

    To ``sentence_batches`` come ``own``, which of ``pictures`` it is, ``first``, the number of its first sentence, and
    ``pixels``, the picture itself, (h, w, 3) uint8.

    Args:
        pictures: one after another.
        size: side of the network's input.
        tokens_of: from clean sentences to ids of their words.
    """

    def __init__(self, pictures: Sequence[OwnPicture], size: int, tokens_of: Callable[[Sequence[str]], Tensor]) -> None:
        self.pictures, self.size, self.tokens_of = pictures, size, tokens_of

    def __len__(self) -> int:
        return sum(-(-len(picture.sentences) // AT_ONCE) for picture in self.pictures)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, own in enumerate(self.pictures):
            picture, first = read_rgb(own.path), 0
            for batch in sentence_batches(picture, own.sentences, self.size, self.tokens_of, str(own.path)):
                yield batch | {"own": number, "first": first, "pixels": np.asarray(picture)}
                first += len(batch["sentence"])
