"""What a re-identification set on disk is split into: pictures to train on, queries and gallery, persons held out."""

from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from datamodules.draws import SPLIT, hash64, permutation
from datamodules.reid_files import (
    GALLERY,
    JUNK,
    QUERY,
    TRAIN,
    EvaluationFiles,
    ReIDFiles,
    ReIDLayout,
    can_be_held_out,
    check_evaluation,
    hold_out,
    read_folder,
    unusual_counts,
)
from datamodules.reid_images import ReIDImages
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.suggestions import shorten


class ReIDSplits:
    """Reads the splits of a set, and says in the log what is unusual about them.

    Args:
        root: holds the folders.
        layout: the set that is expected there.
        val_ids: persons of the training set that are held out; 0 is none.
        seed: decides which.
        keep_junk: leave junk in the gallery.
        skip: leave out files that cannot be read, else stop at the first of a split if it is one.

    Attributes:
        bad: files that were left out.
    """

    def __init__(
        self,
        root: Path,
        layout: ReIDLayout,
        val_ids: int = 0,
        seed: int = 0,
        keep_junk: bool = False,
        skip: bool = False,
    ) -> None:
        self.root, self.layout, self.val_ids, self.seed = root, layout, val_ids, seed
        self.keep_junk, self.skip = keep_junk, skip
        self.where = f"root={str(root)!r}"
        self.bad: list[str] = []

    def train(self) -> ReIDFiles:
        """The pictures that training may use.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: names do not parse or are those of another set, or no pictures are left.
        """
        train = read_folder(self.root, TRAIN, self.layout)
        self._tell_counts(train, TRAIN)
        train = without_junk(train)
        train = self.readable(train.take(self._parts(train)[0]))
        if not len(train):
            raise ValueError(f"{self.where}: no pictures of {TRAIN} are left to train on")
        return train

    def held_out(self) -> EvaluationFiles:
        """Queries and gallery of the persons held out; raises as :meth:`test`."""
        train = without_junk(read_folder(self.root, TRAIN, self.layout))
        _, query, gallery = self._parts(train)
        return self._checked(EvaluationFiles(train.take(query), train.take(gallery)), f"val_ids={self.val_ids}")

    def test(self) -> EvaluationFiles:
        """The test queries and gallery.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: names do not parse or are those of another set, or the evaluation would be empty.
        """
        query, gallery = (read_folder(self.root, folder, self.layout) for folder in (QUERY, GALLERY))
        self._tell_counts(query, QUERY)
        self._tell_counts(gallery, GALLERY)
        if not self.keep_junk and (junk := int((gallery.pids == JUNK).sum())):
            rank_zero_info(f"{junk} junk pictures of {GALLERY} are left out, as no figure counts them")
            gallery = without_junk(gallery)
        return self._checked(EvaluationFiles(query, gallery), self.where)

    def readable(self, files: ReIDFiles) -> ReIDFiles:
        """With ``skip``: the files without those that are broken; else read the first as a check.

        Raises:
            BadImageError: the first cannot be read.
        """
        images = ReIDImages(files, 1, 1)
        if not self.skip:
            if len(files):
                images.picture(0)
            return files
        bad = []
        for row in range(len(files)):
            try:
                images.picture(row)
            except BadImageError:
                bad.append(row)
        if not bad:
            return files
        names = [str(files.path(row)) for row in bad]
        rank_zero_warn(f"skipped {len(bad)} of {len(files)} pictures that cannot be read: {shorten(names)}")
        self.bad = sorted({*self.bad, *names})
        return files.take(np.delete(np.arange(len(files)), bad))

    def _parts(self, train: ReIDFiles) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Which pictures to train on, and rows of queries and gallery of the persons held out."""
        persons = can_be_held_out(train)
        if self.val_ids > len(persons):
            raise ValueError(
                f"val_ids={self.val_ids}, but {len(persons)} persons of {TRAIN} have pictures of two cameras and two "
                "pictures of one of these, so that a query has a match; take fewer"
            )
        held = persons[permutation(len(persons), SPLIT, self.seed)[: self.val_ids]]  # fewer are part of more
        return hold_out(train, held, hash64(SPLIT, self.seed, 1, np.arange(len(train))))

    def _checked(self, evaluation: EvaluationFiles, where: str) -> EvaluationFiles:
        evaluation = EvaluationFiles(*map(self.readable, evaluation))
        if missing := check_evaluation(evaluation, where):
            rank_zero_info(
                f"{missing} of {len(evaluation.query)} queries have no picture of their person from another camera in "
                "the gallery: no figure counts them"
            )
        return evaluation

    def _tell_counts(self, files: ReIDFiles, folder: str) -> None:
        if text := unusual_counts(files, folder, self.layout):
            rank_zero_info(text)


def without_junk(files: ReIDFiles) -> ReIDFiles:
    """The files without those of id -1."""
    return files.take(files.pids != JUNK)


def require_two_persons(files: ReIDFiles, where: str) -> None:
    """Make sure that batches have negatives.

    Args:
        files: labelled training pictures.
        where: what a message calls their place.

    Raises:
        ValueError: they show fewer than two persons.
    """
    if (persons := len(np.unique(files.pids))) < 2:
        raise ValueError(
            f"{where}: {TRAIN} has pictures of {persons} persons to train on; a batch with one identity has no "
            "negatives, so it takes two"
        )
