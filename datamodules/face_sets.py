"""Evaluation sets of faces: pairs to be verified, and probes to be looked up in a gallery."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.face_bins import read_bin
from datamodules.face_pictures import PictureFiles, Pictures
from datamodules.face_probes import FaceProbes, read_probes
from datamodules.samplers import epochs_and_positions
from datamodules.scface import read_scface
from datamodules.transforms import to_uint8
from lit_methods.functional.face_pairs import read_pairs

Batch = dict[str, Tensor | tuple[Tensor, Tensor]]

_FORMS = (
    "a .bin verification set; a .txt list of pairs as LFW's pairs.txt, beside the folders of the persons; a .csv with "
    "the columns path, label and group; or a folder of SCface"
)


class FaceSet(Dataset[Batch]):
    """An evaluation set that is fetched a batch at a time, pictures brought to one size, uint8.

    Keys are positions in the order of fetching, or ``(epoch, position)``. ``index`` of a batch is the position in the
    file that the set was read from.

    Args:
        name: of the set.
        pictures: that it is about.
        image_size: side that pictures are brought to, in pixels; bilinear with antialiasing.

    Raises:
        BadImageError: a picture cannot be read, when it is fetched. None is left out silently.
    """

    kind: Literal["pairs", "probes"]
    groups: tuple[str, ...] = ()  # names of the groups of probes; the number of one is its place here

    def __init__(self, name: str, pictures: Pictures, image_size: int) -> None:
        self.name, self.pictures, self.image_size = name, pictures, image_size

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs, or of gallery and probe pictures."""

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        batch = self.__getitems__([key])
        return {
            name: value[0] if isinstance(value, Tensor) else (value[0][0], value[1][0]) for name, value in batch.items()
        }

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """Fetch a batch: PyTorch's loader calls this instead of one ``__getitem__`` per item."""
        return self.fetch(epochs_and_positions(keys)[1])

    @abstractmethod
    def fetch(self, positions: NDArray[np.int64]) -> Batch:
        """The batch of these positions, possibly none."""

    @abstractmethod
    def sources(self, index: int) -> tuple[str, ...]:
        """Names of the pictures of the item that has this ``index``: two for a pair, one for a probe."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many there are of what, for a summary."""

    def images(self, rows: NDArray[np.int64]) -> Tensor:
        """Pictures of the table, ``(n, 3, image_size, image_size)`` uint8; each is read once."""
        once, places = np.unique(rows, return_inverse=True)
        found = [self._sized(self.pictures.read(row)) for row in once.tolist()]
        if not found:
            return torch.empty((0, 3, self.image_size, self.image_size), dtype=torch.uint8)
        return torch.stack(found)[torch.from_numpy(places)]

    def _sized(self, image: Image.Image) -> Tensor:
        size = (self.image_size, self.image_size)
        return to_uint8(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))


class PairSet(FaceSet):
    """Pairs to be verified, in the order of their file.

    A batch has ``pair``, two times (B, 3, S, S), ``same`` (B,) bool and ``index`` (B,) int64.

    Args:
        name, pictures, image_size: as in :class:`FaceSet`.
        first: ``(N,)`` row of the first picture of each pair.
        second: ``(N,)`` row of the second.
        same: ``(N,)`` bool, the same person.
        folds: of its cross-validation.

    Example:
        >>> from datamodules.face_pictures import EncodedPictures
        >>> pairs = PairSet("p", EncodedPictures([], ""), 8, *np.zeros((2, 3), int), np.ones(3, bool))
        >>> len(pairs), pairs.counts(), [len(images) for images in pairs.fetch(np.array([], int))["pair"]]
        (3, {'pairs': 3, 'same': 3}, [0, 0])
    """

    kind = "pairs"

    def __init__(
        self,
        name: str,
        pictures: Pictures,
        image_size: int,
        first: NDArray[np.int64],
        second: NDArray[np.int64],
        same: NDArray[np.bool_],
        folds: int = 10,
    ) -> None:
        super().__init__(name, pictures, image_size)
        self.first, self.second, self.same, self.folds = first, second, same, folds

    def __len__(self) -> int:
        return len(self.same)

    def fetch(self, positions: NDArray[np.int64]) -> Batch:
        """The pairs of these positions."""
        images = self.images(np.concatenate([self.first[positions], self.second[positions]]))
        return {
            "pair": (images[: len(positions)], images[len(positions) :]),
            "same": torch.from_numpy(self.same[positions]),
            "index": torch.from_numpy(positions),
        }

    def sources(self, index: int) -> tuple[str, ...]:
        """Names of both pictures."""
        return self.pictures.name(int(self.first[index])), self.pictures.name(int(self.second[index]))

    def counts(self) -> dict[str, int]:
        """Number of pairs and of those of one person."""
        return {"pairs": len(self), "same": int(self.same.sum())}


class ProbeSet(FaceSet):
    """A gallery and groups of probes, person by person, a picture of the gallery first and then the groups in turn.

    So a limit on the number of batches leaves whole persons out, but for the last one, and no group. A batch has
    ``image`` (B, 3, S, S), ``label`` and ``group`` (B,) int64, the latter -1 for the gallery and else the number of the
    group, and ``index`` (B,) int64.

    Args:
        name, pictures, image_size: as in :class:`FaceSet`.
        probes: persons and groups of the pictures.

    Example:
        >>> from datamodules.face_pictures import EncodedPictures
        >>> probes = FaceProbes([], np.array([0, 1, 0]), np.array([0, -1, -1]), ["Ada", "Bob"], ("far",))
        >>> faces = ProbeSet("p", EncodedPictures([], ""), 8, probes)
        >>> faces.order, faces.counts()
        (array([2, 0, 1]), {'identities': 2, 'gallery': 2, 'far': 1})
    """

    kind = "probes"

    def __init__(self, name: str, pictures: Pictures, image_size: int, probes: FaceProbes) -> None:
        super().__init__(name, pictures, image_size)
        self.labels, self.group = probes.labels, probes.group
        self.identities, self.groups = probes.identities, probes.groups
        self.order = np.lexsort((probes.group, _places(probes), probes.labels))

    def __len__(self) -> int:
        return len(self.order)

    def fetch(self, positions: NDArray[np.int64]) -> Batch:
        """The pictures of these positions."""
        rows = self.order[positions]
        return {
            "image": self.images(rows),
            "label": torch.from_numpy(self.labels[rows]),
            "group": torch.from_numpy(self.group[rows]),
            "index": torch.from_numpy(rows),
        }

    def sources(self, index: int) -> tuple[str, ...]:
        """The name of the picture."""
        return (self.pictures.name(index),)

    def counts(self) -> dict[str, int]:
        """Number of persons, of gallery pictures and of probes in each group."""
        sizes = {group: int((self.group == number).sum()) for number, group in enumerate(self.groups)}
        return {"identities": len(np.unique(self.labels)), "gallery": int((self.group == -1).sum())} | sizes


def _places(probes: FaceProbes) -> NDArray[np.int64]:
    """How many pictures of its person and group come before each."""
    order = np.lexsort((probes.group, probes.labels))
    key = np.stack([probes.labels[order], probes.group[order]])
    begins = np.flatnonzero(np.r_[True, (key[:, 1:] != key[:, :-1]).any(0)])
    places = np.empty_like(probes.labels)
    places[order] = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    return places


def read_set(name: str, path: Path, image_size: int) -> FaceSet:
    """Read an evaluation set, whose form says what it is.

    ======================  ========================================================================================
    form                    see
    ======================  ========================================================================================
    ``*.bin``               :func:`~datamodules.face_bins.read_bin`
    ``*.txt``               :func:`~lit_methods.functional.face_pairs.read_pairs`
    ``*.csv``               :func:`~datamodules.face_probes.read_probes`
    a folder                :func:`~datamodules.scface.read_scface`
    ======================  ========================================================================================

    Args:
        name: of the set, its key in ``val_sets`` or ``test_sets``.
        path: of its file or folder.
        image_size: side that pictures are brought to, in pixels.

    Returns:
        A :class:`PairSet` or a :class:`ProbeSet`.

    Raises:
        FileNotFoundError: it, or a picture of it, is not there.
        ValueError: it has none of these forms, or something in it is wrong.

    Example:
        >>> read_set("lfw", Path("lfw.rec"), 112)
        Traceback (most recent call last):
        FileNotFoundError: set 'lfw' of val_sets or test_sets: no 'lfw.rec'. It may be a .bin verification set; ...
    """
    if not path.exists():
        raise FileNotFoundError(f"set {name!r} of val_sets or test_sets: no {str(path)!r}. It may be {_FORMS}.")
    if path.is_dir():
        scface = read_scface(path)
        return ProbeSet(name, PictureFiles(path, scface.files), image_size, scface)
    match path.suffix.lower():
        case ".bin":
            pictures, same = read_bin(path)
            first = 2 * np.arange(len(same))
            return PairSet(name, pictures, image_size, first, first + 1, same)
        case ".txt":
            pairs = read_pairs(path)
            files = PictureFiles(path.parent, pairs.files)
            return PairSet(name, files, image_size, pairs.first, pairs.second, pairs.same, pairs.folds)
        case ".csv":
            probes = read_probes(path)
            return ProbeSet(name, PictureFiles(path.parent, probes.files), image_size, probes)
    raise ValueError(f"set {name!r} of val_sets or test_sets: {str(path)!r} has none of the four forms: {_FORMS}.")
