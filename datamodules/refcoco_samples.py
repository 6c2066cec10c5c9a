"""What sentences refer to as data sets: a sentence of each referent to train on, all of them to evaluate on."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.draws import uniforms
from datamodules.refcoco_targets import Mask, Target
from datamodules.refcoco_words import Vocabulary
from datamodules.samplers import EpochSampler, epochs_and_positions
from lit_methods.functional.draws import purpose
from lit_methods.functional.letterbox import letterbox_image, letterbox_mask
from lit_methods.functional.pictures import BadImageError, read_rgb

SENTENCE = purpose("refcoco/sentence")


class MaskCache:
    """Masks that have been drawn once, as the lengths of their runs: a hundredth of their pixels.

    Example:
        >>> cache = MaskCache()
        >>> drawn = cache.get(5, lambda: np.array([[0, 1, 1], [1, 0, 0]], np.uint8))
        >>> cache.get(5, lambda: drawn * 0).tolist()
        [[0, 1, 1], [1, 0, 0]]
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[int, ...], NDArray[np.int32]]] = {}

    def get(self, number: int, draw: Callable[[], Mask]) -> Mask:
        """A mask of 0 and 1.

        Args:
            number: of the mask.
            draw: makes it where it has not been drawn yet.
        """
        if number in self._kept:
            shape, lengths = self._kept[number]
            return np.repeat(np.arange(len(lengths), dtype=np.uint8) % 2, lengths).reshape(shape)
        mask = draw()
        changes = np.flatnonzero(np.diff(mask.ravel(), prepend=0))
        self._kept[number] = (mask.shape, np.diff(changes, prepend=0, append=mask.size).astype(np.int32))
        return mask


class FullBatchSampler(EpochSampler):
    """Every ref once in an epoch, and as many of its first ones again as fill the last batch.

    Args:
        dataset: anything with a length, the same on all ranks.
        batch_size: per rank.
        seed: together with the epoch it decides the order.

    Source:
        Section 4: MCN's official code fills the last batch in this way. A batch of one would also be too small for
        batch normalisation of a vector.

    Example:
        >>> [position for _, position in FullBatchSampler(range(1), batch_size=3)]
        [0, 0, 0]
    """

    def __init__(self, dataset: Any, batch_size: int, seed: int = 0) -> None:
        super().__init__(dataset, seed)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-super().__len__() // self.batch_size) * self.batch_size


class ReferringViews(Dataset[dict[str, Tensor]]):
    """Refs to train on: their letterboxed picture, mask and box, and one of their sentences by (seed, epoch, ref).

    Keys are ``(epoch, position)``, as :class:`~datamodules.samplers.EpochSampler` gives them; a plain position is one
    of epoch 0. A batch has ``image`` (B, 3, S, S) uint8, ``tokens`` (B, T) int64, ``box`` (B, 4) float32, xyxy in
    letterboxed pixels, ``mask`` (B, 1, S, S) uint8 of 0 and 1, and ``index`` (B,) int64, the position of the ref.

    Args:
        folder: paths of pictures count from it.
        targets: what is referred to; sentences without words are not drawn.
        vocabulary: ids of words.
        size: side of the letterboxed picture.
        seed: of the draws.
        skip: in place of a picture that cannot be read take that of the next ref that can, so that batches stay full
            and every rank and every resumed run agrees.
        in_memory: keep the letterboxed pictures, in each process that reads.
    """

    def __init__(
        self,
        folder: Path,
        targets: Sequence[Target],
        vocabulary: Vocabulary,
        size: int = 416,
        seed: int = 0,
        skip: bool = False,
        in_memory: bool = False,
    ) -> None:
        self.folder, self.targets, self.vocabulary = folder, targets, vocabulary
        self.size, self.seed, self.skip = size, seed, skip
        self.bad = torch.zeros(len(targets), dtype=torch.bool)
        if skip:
            self.bad.share_memory_()  # workers mark here, the main process reads
        self._warned: set[str] = set()
        self._masks = MaskCache()
        self._kept: dict[str, Tensor] | None = {} if in_memory else None

    def __len__(self) -> int:
        return len(self.targets)

    def path(self, number: int) -> Path:
        """The picture of a ref."""
        return self.folder / self.targets[number].file

    def bad_files(self) -> list[str]:
        """Pictures that this process or its workers could not read so far."""
        return list(dict.fromkeys(str(self.path(number)) for number in torch.nonzero(self.bad).flatten().tolist()))

    def sentence(self, number: int, epoch: int) -> str:
        """The sentence of a ref that is drawn in an epoch; each of those with words is as likely.

        Args:
            number: position of the ref.
            epoch: of training.
        """
        spoken = [sentence for sentence in self.targets[number].sentences if sentence.strip()]
        return spoken[int(uniforms(1, SENTENCE, self.seed, epoch, number)[0, 0] * len(spoken))]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """One ref, as :meth:`__getitems__` without the first dimension."""
        return {name: part[0] for name, part in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, Tensor]:
        """The batch of these keys.

        Raises:
            BadImageError: a picture cannot be read, and ``skip`` is not set; names it.
            ValueError: a picture is not of the size that the annotations say.
        """
        images, tokens, boxes, masks, numbers = [], [], [], [], []
        for epoch, position in np.stack(epochs_and_positions(keys), 1).tolist():
            number, image = self._next(position)
            target = self.targets[number]
            images.append(image)
            tokens.append(self.vocabulary.tokens(self.sentence(number, epoch)))
            boxes.append(target.letterboxed(self.size))
            masks.append(self._mask(number))
            numbers.append(number)
        return {
            "image": torch.stack(images),
            "tokens": torch.tensor(tokens, dtype=torch.int64),
            "box": torch.stack(boxes),
            "mask": torch.from_numpy(np.stack(masks)[:, None]),
            "index": torch.tensor(numbers, dtype=torch.int64),
        }

    def _mask(self, number: int) -> Mask:
        return self._masks.get(number, lambda: letterbox_mask(self.targets[number].mask(), self.size))

    def _next(self, position: int) -> tuple[int, Tensor]:
        """The ref at a position, or the next whose picture can be read, and the letterboxed picture."""
        for step in range(len(self) if self.skip else 1):
            number = (position + step) % len(self)
            if (image := self._read(number)) is not None:
                return number, image
        raise ValueError(f"not one readable picture of the {len(self)} refs among those of {str(self.folder)!r}")

    def _read(self, number: int) -> Tensor | None:
        file, path = self.targets[number].file, self.path(number)
        if self._kept is not None and file in self._kept:
            return self._kept[file]
        try:
            picture = read_rgb(path)
        except BadImageError as error:
            if not self.skip:
                raise BadImageError(f'{error}. Replace the file, or set on_bad_image="skip".') from error
            if not self.bad[number] and file not in self._warned:
                warnings.warn(f"skipped: {error}", stacklevel=2)
            self.bad[number] = True
            self._warned.add(file)
            return None
        self.targets[number].check_size(picture, path)
        image = torch.from_numpy(letterbox_image(picture, self.size))
        if self._kept is not None:
            self._kept[file] = image
        return image


class ReferringImages(Dataset[dict[str, Any]]):
    """Pictures to evaluate on, with all sentences of all their refs.

    An item is a picture and gives a row for every sentence, so that a batch of several pictures has more rows, and the
    rows of a picture are neighbours. A batch of B rows has ``image`` (B, 3, S, S) uint8, the same for all rows of a
    picture, ``tokens`` (B, T) int64, ``box`` (B, 4) float32, xyxy in letterboxed pixels, ``mask``, a list of (h, w)
    uint8 of 0 and 1 at the picture's own size, one tensor for all sentences of a ref, ``size`` (B, 2) int64, height and
    width of the picture, ``image_id`` and ``ref_id`` (B,) int64, ``sentence`` and ``file``, lists of str, and
    ``index`` (B,) int64, the number of the sentence, counted picture by picture.

    Args:
        folder: paths of pictures count from it.
        targets: what is referred to, in the order of the refs. Pictures come in the order of their first ref.
        vocabulary: ids of words.
        size: side of the letterboxed picture.
    """

    def __init__(self, folder: Path, targets: Sequence[Target], vocabulary: Vocabulary, size: int = 416) -> None:
        self.folder, self.vocabulary, self.size = folder, vocabulary, size
        grouped: dict[int, list[Target]] = {}
        for target in targets:
            grouped.setdefault(target.image_id, []).append(target)
        self.images = list(grouped.values())
        counts = [sum(len(target.sentences) for target in image) for image in self.images]
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).tolist()
        self._masks = MaskCache()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sentences(self) -> list[str]:
        """All sentences in the order of ``index``."""
        return [sentence for image in self.images for target in image for sentence in target.sentences]

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The rows of one picture."""
        return self.__getitems__([number])

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The rows of these pictures.

        Raises:
            BadImageError: a picture cannot be read; names it.
            ValueError: a picture is not of the size that the annotations say.
        """
        images, counts, boxes, ids = [], [], [], []
        drawn: list[tuple[Mask, int]] = []
        sentences: list[str] = []
        files: list[str] = []
        index: list[int] = []
        for number in numbers:
            path = self.folder / self.images[number][0].file
            images.append(self._read(number, path))
            counts.append(self._starts[number + 1] - self._starts[number])
            index += range(self._starts[number], self._starts[number + 1])
            files += [str(path)] * counts[-1]
            for target in self.images[number]:
                said = len(target.sentences)
                drawn.append((self._masks.get(target.ref_id, target.mask), said))
                boxes += [target.letterboxed(self.size)] * said
                ids += [(target.height, target.width, target.image_id, target.ref_id)] * said
                sentences += target.sentences
        tokens = [self.vocabulary.tokens(sentence) for sentence in sentences]
        stacked = torch.stack(images) if images else torch.zeros((0, 3, self.size, self.size), dtype=torch.uint8)
        table = torch.tensor(ids, dtype=torch.int64).view(-1, 4)
        return {
            "image": stacked.repeat_interleave(torch.tensor(counts, dtype=torch.int64), 0),
            "tokens": torch.tensor(tokens, dtype=torch.int64).view(-1, self.vocabulary.max_words),
            "box": torch.stack(boxes) if boxes else torch.zeros((0, 4)),
            "mask": _side_by_side(drawn),
            "size": table[:, :2].clone(),
            "image_id": table[:, 2].clone(),
            "ref_id": table[:, 3].clone(),
            "sentence": sentences,
            "file": files,
            "index": torch.tensor(index, dtype=torch.int64),
        }

    def _read(self, number: int, path: Path) -> Tensor:
        try:
            picture = read_rgb(path)
        except BadImageError as error:
            raise BadImageError(f"{error}. An evaluation leaves nothing out: get the file again.") from error
        self.images[number][0].check_size(picture, path)
        return torch.from_numpy(letterbox_image(picture, self.size))


def _side_by_side(drawn: Sequence[tuple[Mask, int]]) -> list[Tensor]:
    """Masks as tensors, each so many times, in one piece of memory: a worker hands each piece over as an open file."""
    if not drawn:
        return []
    flat = torch.from_numpy(np.concatenate([mask.ravel() for mask, _ in drawn]))
    parts = zip(flat.split([mask.size for mask, _ in drawn]), drawn, strict=True)
    return [each for part, (mask, times) in parts for each in [part.view(mask.shape)] * times]
