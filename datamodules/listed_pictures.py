"""Whole pictures of a list to evaluate on, with whatever is known of each."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from datamodules.face_pictures import PictureFiles
from datamodules.transforms import to_uint8


class PictureList(Protocol):
    """Pictures with a name and a file each."""

    @property
    def names(self) -> list[str]:
        """What each is called."""

    @property
    def files(self) -> list[str]:
        """Their paths."""

    def __len__(self) -> int:
        """Number of pictures."""


class ListedPictures(Dataset[dict[str, Any]]):
    """Pictures as they are, in the order of a list.

    A batch has ``image``, a list of (3, H, W) uint8 of different sizes, what :meth:`known` says, ``name``, a list, and
    ``index`` (B,) int64.

    Args:
        folder: paths count from it; ``None``: the pictures are not read, and there is no ``image``.
        listed: the pictures.
    """

    def __init__(self, folder: Path | None, listed: PictureList) -> None:
        self._list = listed
        self._pictures = None if folder is None else PictureFiles(folder, listed.files)

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """One picture, as :meth:`__getitems__` without the first dimension."""
        return {name: part[0] for name, part in self.__getitems__([number]).items()}

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """The batch of these numbers.

        Raises:
            BadImageError: a picture cannot be read; names it.
        """
        batch: dict[str, Any] = {}
        if self._pictures is not None:
            batch["image"] = [to_uint8(self._pictures.read(number)) for number in numbers]
        batch |= self.known(numbers)
        batch["name"] = [self._list.names[number] for number in numbers]
        return batch | {"index": torch.tensor(list(numbers), dtype=torch.int64)}

    @abstractmethod
    def known(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """What is true of these pictures, key by key.

        Args:
            numbers: of pictures.
        """
