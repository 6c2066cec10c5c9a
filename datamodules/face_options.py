"""What a user says of the training faces and of which are hard, checked, and the split that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.face_lists import FaceFiles, read_faces
from datamodules.face_rules import EASY, HARD, by_difficulty, by_group, by_pose, by_resolution, short_sides
from datamodules.face_splits import FaceSplit, split_one, split_several
from lit_methods.functional.suggestions import shorten


@dataclass(frozen=True)
class FaceSplitOptions:
    """Where training pictures are, and which of them are hard.

    Args:
        root: paths count from it.
        train, easy, hard, difficulty, rule, easy_side, hard_side, easy_yaw, hard_yaw, easy_group, hard_scales,
            identities: as in :class:`~datamodules.face_folder.FaceFolderDataModule`.
        skip: a file whose size cannot be read is left out.

    Raises:
        ValueError: one is out of range, has no effect or is missing; or there are two ways to say what is hard.

    Example:
        >>> FaceSplitOptions(Path("nowhere"), hard_scales=[2, 4]).branch_names
        ['easy', 'hard']
        >>> FaceSplitOptions(Path("nowhere"), difficulty="d.csv", hard_scales=[2])
        Traceback (most recent call last):
        ValueError: difficulty, hard_scales: what is hard must be said in one way; take one of them
    """

    root: Path
    train: str = "train"
    easy: str | None = None
    hard: Mapping[str, str] | None = None
    difficulty: str | None = None
    rule: str | None = None
    easy_side: int | None = None
    hard_side: int | None = None
    easy_yaw: float = 15.0
    hard_yaw: float = 45.0
    easy_group: str | None = None
    hard_scales: list[int] | None = None
    identities: str | None = None
    skip: bool = False

    def __post_init__(self) -> None:
        if self.rule not in (None, "resolution", "pose", "group"):
            raise ValueError(f"rule must be resolution, pose, group or null, got {self.rule!r}")
        if self.identities not in (None, "shared", "separate"):
            raise ValueError(f"identities must be shared, separate or null, got {self.identities!r}")
        self._check_ways()
        self._check_lists()
        self._check_rule()
        if self.hard_scales is not None and not (self.hard_scales and all(scale >= 2 for scale in self.hard_scales)):
            raise ValueError(f"hard_scales must be factors of 2 or more, such as [2, 3, 4], got {self.hard_scales}")

    @property
    def branch_names(self) -> list[str]:
        """The branches as far as they are known without the files."""
        if self.hard is not None:
            return [EASY, *self.hard]
        plain = self.difficulty is None and self.rule is None and self.hard_scales is None
        return [EASY] if plain else [EASY, HARD]

    @property
    def places(self) -> dict[str, Path]:
        """Arguments that name a file or a folder for training, and which."""
        if self.easy is not None and self.hard is not None:
            found = {"easy": self.easy} | {f"hard.{name}": place for name, place in self.hard.items()}
        else:
            found = {"train": self.train}
        found |= {} if self.difficulty is None else {"difficulty": self.difficulty}
        return {name: self.root / place for name, place in found.items()}

    def expected_classes(self, identities: int) -> int | list[int]:
        """Number of classes if all branches show all identities.

        Args:
            identities: how many there are.
        """
        separate = self.identities == "separate"
        return [identities] * len(self.branch_names) if separate else identities

    def missing(self) -> list[str]:
        """What is not there of :attr:`places`, for messages."""
        return [f"{name}={str(path)!r}" for name, path in self.places.items() if not path.exists()]

    def read(self) -> FaceSplit:
        """Read the split.

        Raises:
            FileNotFoundError: a file or folder is not there, or a picture of a list.
            ValueError: lists or tables do not parse, name pictures or identities twice, or a branch has too little.
        """
        if self.easy is not None and self.hard is not None:
            sources = {EASY: read_faces(self.root, self.easy, "easy")}
            sources |= {name: read_faces(self.root, place, f"hard.{name}") for name, place in self.hard.items()}
            return split_several(sources, self.identities)
        files = read_faces(self.root, self.train)
        separate = self.identities == "separate"
        if self.hard_scales is not None:
            return split_one(files, np.zeros(len(files), np.int64), [EASY, HARD], separate, copies=True)
        if self.rule == "resolution":
            return self._by_resolution(files, separate)
        if self.difficulty is None:
            return split_one(files, np.zeros(len(files), np.int64), [EASY], separate)
        table = self.root / self.difficulty
        if self.rule == "pose":
            kinds, names = by_pose(files, table, self.easy_yaw, self.hard_yaw)
        elif self.rule == "group":
            kinds, names = by_group(files, table, self.easy_group or "")
        else:
            kinds, names = by_difficulty(files, table)
        return split_one(files, kinds, names, separate)

    def _by_resolution(self, files: FaceFiles, separate: bool) -> FaceSplit:
        sides = short_sides(files, self.skip)
        kinds, names = by_resolution(sides, self.easy_side or 0, self.hard_side or 0)
        return split_one(files, kinds, names, separate, unreadable=np.flatnonzero(sides == 0))

    def _check_ways(self) -> None:
        ways = {
            "easy and hard": self.easy is not None or self.hard is not None,
            "difficulty": self.difficulty is not None and self.rule not in ("pose", "group"),
            f"rule={self.rule}": self.rule is not None,
            "hard_scales": self.hard_scales is not None,
        }
        given = [way for way, used in ways.items() if used]
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: what is hard must be said in one way; take one of them")

    def _check_lists(self) -> None:
        if (self.easy is None) != (self.hard is None):
            given, other = ("easy", "hard") if self.hard is None else ("hard", "easy")
            raise ValueError(f"{given} is given without {other}: each branch needs its folder or list; give both")
        if self.hard is None:
            return
        if not self.hard:
            raise ValueError("hard must name one branch at least, such as {hard: hard.txt}; got none")
        if wrong := [name for name in self.hard if not name.strip() or name == EASY]:
            raise ValueError(f'hard must not call a branch {shorten(map(repr, wrong))}; "hard" will do')

    def _check_rule(self) -> None:
        sides = {"easy_side": self.easy_side, "hard_side": self.hard_side}
        options = (
            sides if self.rule == "resolution" else {"easy_group": self.easy_group} if self.rule == "group" else {}
        )
        if missing := [name for name, value in options.items() if value is None]:
            raise ValueError(f'rule="{self.rule}" needs {" and ".join(missing)}')
        for name, value in (sides | {"easy_group": self.easy_group}).items():
            if value is not None and name not in options:
                needed = "group" if name == "easy_group" else "resolution"
                raise ValueError(f'{name}={value!r} has no effect without rule="{needed}"')
        if self.easy_side is not None and self.hard_side is not None and not 1 <= self.hard_side <= self.easy_side:
            raise ValueError(
                f"hard_side must be between 1 and easy_side={self.easy_side}, got {self.hard_side}: hard is below it"
            )
        if not 0 <= self.easy_yaw < self.hard_yaw <= 180:
            raise ValueError(
                f"easy_yaw and hard_yaw must be degrees with 0 <= easy_yaw < hard_yaw <= 180, got {self.easy_yaw} and "
                f"{self.hard_yaw}"
            )
        if self.rule in ("pose", "group") and self.difficulty is None:
            column = "yaw" if self.rule == "pose" else "group"
            raise ValueError(f'rule="{self.rule}" needs difficulty, a CSV table with path,{column}')
