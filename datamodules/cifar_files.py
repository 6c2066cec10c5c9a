"""The files of CIFAR-10 and CIFAR-100 as their authors packed them, and scikit-learn's digits in their form."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from datamodules.classification import stratified_split
from datamodules.pickles import load_arrays


@dataclass(frozen=True)
class _Layout:
    """The files of one data set, as its authors packed them, and their MD5."""

    folder: str
    archive: str
    label_key: str
    names_key: str
    train: dict[str, str]
    test: dict[str, str]
    meta: str
    meta_md5: str

    @property
    def md5(self) -> dict[str, str]:
        return self.train | self.test | {self.meta: self.meta_md5}

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.md5)


LAYOUTS = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        label_key="labels",
        names_key="label_names",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta="batches.meta",
        meta_md5="5ff9c542aee3614f3951f8cda6e48888",
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        label_key="fine_labels",
        names_key="fine_label_names",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta="meta",
        meta_md5="7973b15100ade9c7d40fb424638fde48",
    ),
}

CLASS_NAMES: dict[str, list[str]] = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "cifar100": (  # noqa: SIM905 (a hundred quoted words are harder to read)
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
    ).split(),
    "digits": list("0123456789"),
}

# cifar10: the values of the HRank paper's code and most others (its std is the mean of the images' own).
# cifar100: all pixels of the training set, the values in common use. digits: measured on the training split below.
STATISTICS: dict[str, tuple[list[float], list[float]]] = {
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    "digits": ([0.3062, 0.3062, 0.3062], [0.3764, 0.3764, 0.3764]),
}

_PIXELS = 3 * 32 * 32


@cache
def _small_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All of them, 8 x 8; they come as text, which a run would read three times."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def read_digits(train: bool) -> tuple[Tensor, NDArray[np.int64]]:
    """Scikit-learn's digits as 32 x 32 RGB.

    Args:
        train: the four fifths for training and validation, or the test fifth.

    Returns:
        ``(N, 3, 32, 32)`` uint8 and ``(N,)`` int64: 1438 for training, 359 for the test.

    Example:
        >>> images, labels = read_digits(train=False)
        >>> tuple(images.shape), labels.dtype
        ((359, 3, 32, 32), dtype('int64'))
    """
    pixels, labels = _small_digits()
    rows = stratified_split(labels, 0.2, seed=0)[0 if train else 1]  # 0 always: the test set is the same for everyone
    small = torch.from_numpy(pixels[rows])
    large = small.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return large[:, None].repeat(1, 3, 1, 1), labels[rows]


def read_cifar(name: str, root: str | Path, train: bool) -> tuple[Tensor, NDArray[np.int64]]:
    """Read the original python batches.

    Args:
        name: ``cifar10`` or ``cifar100`` (its 100 fine labels).
        root: the folder that holds the data set's folder, or that folder itself.
        train: the training or the test images.

    Returns:
        ``(N, 3, 32, 32)`` uint8 and ``(N,)`` int64, in the order of the files.

    Raises:
        FileNotFoundError: a file is missing; names all that are.
        ValueError: a file is damaged, asks for code to be run, or holds something else.
    """
    layout, folder = LAYOUTS[name], require_files(name, root)
    images, labels, unknown = [], [], []
    for file in (layout.meta, *(layout.train if train else layout.test)):
        data = (folder / file).read_bytes()
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != layout.md5[file]:
            unknown.append(file)
        content = load_arrays(data, str(folder / file))
        if file == layout.meta:
            _check_class_count(content, name, folder / file)
        else:
            batch_images, batch_labels = _parse_batch(content, name, folder / file)
            images.append(batch_images)
            labels.append(batch_labels)
    if unknown:
        rank_zero_warn(
            f"Not the official {name} files (MD5 differs), read all the same: {', '.join(unknown)} in {folder}"
        )
    pixels = torch.from_numpy(np.concatenate(images))
    return pixels.view(-1, 3, 32, 32), np.concatenate(labels)


def _parse_batch(content: Any, name: str, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    key = LAYOUTS[name].label_key
    if not isinstance(content, dict) or "data" not in content or key not in content:
        raise ValueError(f"{path} is not a batch of {name}: it must be a dict with 'data' and {key!r}")
    data, labels = content["data"], content[key]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        found = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: 'data' must be uint8 (N, {_PIXELS}), that is 32 x 32 RGB, got {found}")
    classes = len(CLASS_NAMES[name])
    values = np.asarray(labels)
    if values.shape != data.shape[:1] or values.dtype.kind not in "iu":
        raise ValueError(f"{path}: {key!r} must be {len(data)} whole numbers, one per image")
    if len(values) and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(f"{path}: {key!r} must be 0 to {classes - 1}, got {values.min()} to {values.max()}")
    return data, values.astype(np.int64)


def _check_class_count(content: Any, name: str, path: Path) -> None:
    key = LAYOUTS[name].names_key
    names = content.get(key) if isinstance(content, dict) else None
    if not isinstance(names, list) or len(names) != len(CLASS_NAMES[name]):
        raise ValueError(f"{path}: {key!r} must list the {len(CLASS_NAMES[name])} class names of {name}")


def find_files(name: str, root: str | Path) -> tuple[Path, list[str]]:
    """The folder of the data set, and the files that are missing there."""
    layout, root = LAYOUTS[name], Path(root)
    inside = any((root / file).is_file() for file in layout.files)
    folder = root if inside else root / layout.folder
    return folder, [file for file in layout.files if not (folder / file).is_file()]


def require_files(name: str, root: str | Path) -> Path:
    """The folder of the data set.

    Raises:
        FileNotFoundError: files are missing; names all of them.
    """
    layout, (folder, missing) = LAYOUTS[name], find_files(name, root)
    if missing:
        raise FileNotFoundError(
            f"{name} is {'incomplete' if folder.is_dir() else 'missing'} in root={str(root)!r}: "
            f"no {', '.join(missing)} in {folder}. Unpack "
            f"https://www.cs.toronto.edu/~kriz/{layout.archive} so that root "
            f"holds {layout.folder}, or set download=True."
        )
    return folder
