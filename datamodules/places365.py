"""Places365-Standard, in the easy format with one folder per class or as it is distributed."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.image_files import ImageFiles, ImageFolders
from datamodules.imagenet import ImageNetDataModule
from lit_methods.functional.pictures import SUFFIXES, list_images
from lit_methods.functional.suggestions import shorten

CATEGORIES, VAL_NUMBERS, VAL_PATHS, NAMES = "categories_places365.txt", "places365_val.txt", "val.txt", "label.txt"
LISTS = "filelist_places365-standard"  # the archive that holds the first two


class Places365DataModule(ImageNetDataModule):
    """Places365-Standard (Zhou et al., TPAMI 2018): 365 kinds of places, at most 5000 training pictures of each.

    Batches, splits and augmentation are those of :class:`~datamodules.imagenet.ImageNetDataModule`, and so are all
    arguments. ``val`` is the test set (the labels of the real one are not public); validation is a part of ``train``.

    - Training pictures are in ``train``, ``data_256`` or ``data_large`` (``data_256_standard`` and
      ``data_large_standard`` where torchvision unpacked them), either in ``<class>`` or in ``<letter>/<class>`` and
      ``<letter>/<class>/<kind>``.
    - Test pictures are in ``val``, ``val_256`` or ``val_large``, either in the same kinds of folders or loose. Loose
      ones need ``places365_val.txt`` and ``categories_places365.txt``, or a ``val.txt`` with lines
      ``val/<class>/<file>``.

    Classes are numbered as in ``categories_places365.txt``, and without it by their sorted names. ``/``, ``-`` and
    ``_`` in names are the same: ``apartment_building/outdoor``, ``apartment_building-outdoor``. Lists lie in ``root``
    or in its folder ``filelist_places365-standard``. An optional ``label.txt`` in ``root`` gives the names for people:
    one line per class, which is one word and then the name. Where these words are the classes, they say which; else
    the lines are in the order of the classes.

    ``mean`` and ``std`` are ImageNet's, as in the authors' own code.

    Raises:
        FileNotFoundError: a folder or a list is missing; names it.
        ValueError: an argument is out of range; a list has a bad line, or names a file that is not there or a class
            that is unknown; a folder belongs to no class.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_places365
        >>> with tempfile.TemporaryDirectory() as root:
        ...     data = Places365DataModule(str(write_places365(root)), batch_size=2, num_workers=0, image_size=32)
        ...     data.setup("test")
        ...     batch = next(iter(data.test_dataloader()))
        >>> data.class_names[1:], tuple(batch["image"].shape), batch["label"].tolist()
        (['airport terminal', 'apartment building, outdoor', 'aquarium'], (2, 3, 32, 32), [0, 0])
    """

    train_folders = ("train", "data_256", "data_large", "data_256_standard", "data_large_standard")
    test_folders = ("val", "val_256", "val_large")

    def find_classes(self) -> list[str]:
        """The classes in the order of their numbers, without the letter that some folders begin with."""
        folders = [folder for folder in (self._folder(True), self._folder(False)) if folder]
        if not folders:
            problem = "holds no folder of pictures" if self.root.is_dir() else "does not exist"
            raise FileNotFoundError(
                f"root={str(self.root)!r} {problem}. Point root at the folder with train/<class>/*.jpg and "
                "val/<class>/*.jpg (the easy format), or with data_256 and val_256 as they are distributed."
            )
        found = {folder: classes for folder in folders if (classes := class_folders(folder))}
        if source := self._list(CATEGORIES):
            names = read_categories(source)
        elif found:
            source, classes = next(iter(found.items()))
            names = sorted(classes)
        else:
            source = self._list(VAL_PATHS) or self._refuse_loose(folders[-1])
            names = sorted({name for _, name, _ in read_paths(source)})
        for folder, classes in found.items():
            _compare(names, source, classes, folder)
        return names

    def find_class_names(self) -> list[str]:
        """From ``label.txt``, or made from the names of the classes."""
        path = self.root / NAMES
        return read_names(path, self.classes) if path.is_file() else [_readable(name) for name in self.classes]

    def list_files(self, folder: Path, train: bool) -> ImageFiles:
        """The pictures of a split: by their folders, or loose test pictures by a list."""
        if folders := {_key(name): path for name, path in class_folders(folder).items()}:
            paths = [folders[_key(name)] for name in self.classes]
            return ImageFolders(folder, paths, chosen=self.class_subset, **self._view_options())
        if train:
            raise FileNotFoundError(f"no class folders in {folder}: training needs {folder.name}/<class>/*.jpg")
        files, labels = self._loose(folder)
        order = sorted(range(len(files)), key=lambda i: (labels[i], files[i]))
        rows = np.array([labels[i] for i in order], np.int64)
        return ImageFiles(folder, [files[i] for i in order], rows, **self._view_options())

    def _loose(self, folder: Path) -> tuple[list[str], list[int]]:
        numbers = self._list(VAL_NUMBERS)
        if numbers and not self._list(CATEGORIES):
            raise FileNotFoundError(
                f"{numbers} gives class numbers, and {CATEGORIES}, which says what they mean, is neither in "
                f"root={str(self.root)!r} nor in its {LISTS}. Unpack {LISTS}.tar there."
            )
        source = numbers or self._list(VAL_PATHS) or self._refuse_loose(folder)
        known = {_key(name): number for number, name in enumerate(self.classes)}
        there = set(list_images(folder))
        files: dict[str, int] = {}  # file to line
        labels = []
        for line, name, file in read_numbers(source) if numbers else read_paths(source):
            label = int(name) if numbers else known.get(_key(name), -1)
            if not 0 <= label < len(known):
                raise ValueError(f"{source}, line {line}: unknown class {name}; there are {len(known)}, from 0 on")
            if file not in there:
                raise ValueError(
                    f"{source}, line {line}: no file {file} in {folder}; unpack it again, or drop the line"
                )
            if file in files:
                raise ValueError(f"{source}, line {line}: {file} was named in line {files[file]} already")
            files[file] = line
            labels.append(label)
        if rest := sorted(there - files.keys()):
            rank_zero_warn(f"{len(rest)} pictures of {folder} are not in {source} and left out: {shorten(rest)}")
        return list(files), labels

    def _list(self, name: str) -> Path | None:
        paths = (self.root / name, self.root / LISTS / name)
        return next((path for path in paths if path.is_file()), None)

    def _refuse_loose(self, folder: Path) -> Path:
        raise FileNotFoundError(
            f"{folder} has no class folders, and no list says what its pictures show: there is neither {VAL_NUMBERS} "
            f"(with {CATEGORIES}) nor {VAL_PATHS} in root={str(self.root)!r}. Unpack {LISTS}.tar there."
        )


def class_folders(folder: Path) -> dict[str, str]:
    """Find the class folders of a split.

    Args:
        folder: holds ``<class>``, or ``<letter>/<class>`` and ``<letter>/<class>/<kind>``.

    Returns:
        Name (without the letter) to path in ``folder``; empty where there are no folders.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for path in ("a/airfield", "c/church/indoor"):
        ...         Path(root, path).mkdir(parents=True)
        ...     class_folders(Path(root))
        {'airfield': 'a/airfield', 'church/indoor': 'c/church/indoor'}
    """
    paths = sorted(path for top in _entries(folder)[1] for path in _leaves(folder, top))
    letters = any("/" in path for path in paths) and all(len(path.split("/")[0]) == 1 for path in paths)
    return {path[2:] if letters and "/" in path else path: path for path in paths}


def read_categories(path: Path) -> list[str]:
    """Class names by number, from lines such as ``/a/apartment_building/outdoor 8``.

    Args:
        path: of ``categories_places365.txt``.

    Returns:
        Names without the slash and the letter in front.

    Raises:
        ValueError: a line of another form, or numbers that are not 0 to the number of lines - 1, each once; or no line.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     _ = file.write("/a/airfield 0" + chr(10) + "/a/arena/rodeo 1")
        ...     file.flush()
        ...     read_categories(Path(file.name))
        ['airfield', 'arena/rodeo']
    """
    lines = list(_lines(path))
    names: dict[int, str] = {}
    for line, text in lines:
        match = re.fullmatch(r"/?\w/(\S+)\s+(\d+)", text)
        if not match:
            raise ValueError(f"{path}, line {line}: expected /<letter>/<class> and a number, got {text!r}")
        name, number = match[1], int(match[2])
        if number in names or not number < len(lines):
            raise ValueError(
                f"{path}, line {line}: classes must be numbered 0 to {len(lines) - 1}, each once; got {text!r}"
            )
        if _key(name) in map(_key, names.values()):
            raise ValueError(f"{path}, line {line}: {name} was named before")
        names[number] = name
    if not names:
        raise ValueError(f"{path} is empty; take it from {LISTS}.tar")
    return [names[number] for number in range(len(names))]


def read_numbers(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, class number and file from lines such as ``Places365_val_00000001.jpg 165``.

    Args:
        path: of ``places365_val.txt``.

    Raises:
        ValueError: a line of another form.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     _ = file.write("Places365_val_00000001.jpg 165")
        ...     file.flush()
        ...     list(read_numbers(Path(file.name)))
        [(1, '165', 'Places365_val_00000001.jpg')]
    """
    for line, text in _lines(path):
        match = re.fullmatch(r"/?([^/\s]+)\s+(\d+)", text)
        if not match:
            raise ValueError(f"{path}, line {line}: expected a file and a class number, got {text!r}")
        yield line, match[2], match[1]


def read_paths(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, class and file from lines such as ``val/airfield/Places365_val_00000435.jpg``.

    Args:
        path: of ``val.txt``; ``val/`` may be left out.

    Raises:
        ValueError: a line of another form.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     _ = file.write("val/airfield/Places365_val_00000435.jpg")
        ...     file.flush()
        ...     list(read_paths(Path(file.name)))
        [(1, 'airfield', 'Places365_val_00000435.jpg')]
    """
    for line, text in _lines(path):
        match = re.fullmatch(r"/?(?:val/)?(\S+)/([^/\s]+)", text)
        if not match:
            raise ValueError(f"{path}, line {line}: expected val/<class>/<file>, got {text!r}")
        yield line, match[1], match[2]


def read_names(path: Path, classes: list[str]) -> list[str]:
    """Names for people, from lines that have one word more in front: the class, or anything else.

    Args:
        path: of ``label.txt``.
        classes: by number; the lines are in this order unless they all begin with a class.

    Raises:
        ValueError: a line without a name, or another number of lines than classes.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w") as file:
        ...     _ = file.write("alley narrow street" + chr(10) + "airfield field for aeroplanes")
        ...     file.flush()
        ...     read_names(Path(file.name), ["airfield", "alley"])
        ['field for aeroplanes', 'narrow street']
    """
    names, words = [], []
    for line, text in _lines(path):
        word, *rest = text.split(None, 1)
        if not rest:
            raise ValueError(f"{path}, line {line}: expected one word and then the name of a class, got {text!r}")
        names.append(" ".join(rest[0].split()))
        words.append(_key(re.sub(r"^/\w/", "", word)))
    if len(names) != len(classes):
        raise ValueError(f"{path} has {len(names)} names, and there are {len(classes)} classes; one line for each")
    keys = [_key(name) for name in classes]
    return [names[words.index(key)] for key in keys] if sorted(words) == sorted(keys) else names


def _compare(names: list[str], source: Path, classes: dict[str, str], folder: Path) -> None:
    """Each class needs one folder, and each folder a class."""
    keys = [_key(name) for name in classes]
    if missing := [name for name in names if _key(name) not in keys]:
        raise FileNotFoundError(
            f"{folder} has no folders for these classes of {source}: {shorten(missing)}. Unpack the archive again; to "
            "use a few classes, set class_subset."
        )
    known = {_key(name) for name in names}
    if unknown := [path for name, path in classes.items() if _key(name) not in known or keys.count(_key(name)) > 1]:
        raise ValueError(f"{folder} has folders that {source} does not name, or two for one class: {shorten(unknown)}")


def _leaves(folder: Path, path: str, depth: int = 1) -> list[str]:
    pictures, inner = _entries(folder / path)
    if pictures or not inner or depth == 3:
        return [path]
    return [leaf for name in inner for leaf in _leaves(folder, f"{path}/{name}", depth + 1)]


def _entries(folder: Path) -> tuple[bool, list[str]]:
    """Whether there are pictures, and the folders; not all of a thousand files are looked at to say so."""
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(SUFFIXES):
                return True, folders
            if entry.is_dir():
                folders.append(entry.name)
    return False, folders


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _key(name: str) -> str:
    return re.sub("[/-]", "_", name)


def _readable(name: str) -> str:
    return re.sub("[/-]", ", ", name).replace("_", " ")
