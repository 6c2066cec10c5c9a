"""A small face recognition set of drawn people: easy and hard pictures, and the lists of real sets to evaluate on.

Easy pictures are sharp and nearly frontal. Hard ones have been down-sampled by a factor of 4 to 8 and brought back to
size, and the head is turned, by up to 55 degrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.demo.face_drawing import Light, Pose, draw_face
from datamodules.demo.face_identity import face_identity
from datamodules.demo.placing import place_described
from datamodules.low_resolution import low_resolution

FACTORS = (4, 5, 6, 7, 8)
EASY_YAW, HARD_YAW = 12.0, 52.0
SPLITS = ("train", "val", "test")
MOST = 10_000  # identities of a split
NAMES = (  # beginnings and ends of given names, then of family names
    ("A", "Be", "Da", "E", "Fa", "I", "Jo", "Ka", "Le", "Mi", "No", "O", "Ra", "Sa", "To", "Vi"),
    ("da", "la", "na", "ra", "sa", "mi", "ni", "ri", "lo", "no", "ro", "len", "ren", "bel"),
    ("A", "Bo", "Ca", "Do", "El", "Gal", "Hol", "Ker", "Lin", "Mar", "Nor", "Or", "Per", "Sol", "Tal"),
    ("bel", "den", "der", "field", "ford", "lan", "man", "mer", "ner", "son", "ton"),
)


@dataclass(frozen=True)
class _Picture:
    """One picture of the plan."""

    split: str
    name: str
    number: int  # of the identity
    index: int  # of the picture, from 1
    yaw: float
    resolution: int  # 1 is the full one

    @property
    def path(self) -> str:
        """Below the split's folder."""
        return f"{self.name}/{self.name}_{self.index:04d}.jpg"

    @property
    def difficulty(self) -> str:
        return "easy" if self.resolution == 1 else "hard"


def write_faces(
    root: str | Path,
    train_ids: int = 64,
    val_ids: int = 24,
    test_ids: int = 60,
    easy: int = 8,
    hard: int = 4,
    probes: int = 4,
    size: int = 64,
    factors: Sequence[int] = FACTORS,
    folds: int = 10,
    pairs: int = 30,
    seed: int = 0,
) -> Path:
    """Write a small set of drawn faces in the layout of LFW, with hard pictures and lists to evaluate on.

    ``root`` gets ``train/<identity>/<identity>_0001.jpg`` and so on, ``difficulty.csv`` (``path`` below ``train``,
    ``difficulty`` easy or hard, ``yaw`` in degrees, ``group`` a or b by skin and hair, ``resolution`` factor, 1 for
    full) and, of other identities each, ``val`` and ``test`` with

    - ``pairs.txt``, exactly as LFW's, of easy pictures; no pair comes twice, and folds may share identities;
    - ``probes.csv`` (``path,label,group``): an easy picture of each identity is the gallery, the others are probes;
    - in ``test`` alone ``hard_pairs.txt``: like ``pairs.txt``, but the second picture of a pair is a hard one.

    It is written beside ``root`` and then renamed, so that nobody finds half of it. The very same set is left as it is.

    Args:
        root: a folder that is empty or not there yet.
        train_ids: identities to train on.
        val_ids: others; 0 leaves ``val`` out.
        test_ids: others again; 0 leaves ``test`` out.
        easy: easy training pictures of each identity.
        hard: hard ones.
        probes: easy and as many hard pictures of each identity in ``val`` and ``test``, beside the one in the gallery.
        size: height and width in pixels.
        factors: that hard pictures are down-sampled by, each at least 2.
        folds: of the pairs.
        pairs: of one identity, and of two, in each fold; fewer where there are not so many.
        seed: decides everything.

    Returns:
        ``root``, to hand to ``FaceFolderDataModule``.

    Raises:
        ValueError: a number is out of range, or ``root`` has something else in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_faces(Path(folder, "faces"), train_ids=1, val_ids=0, test_ids=2, easy=1, hard=1, folds=2)
        ...     sorted(path.name for path in root.iterdir()), (root / "difficulty.csv").read_text().splitlines()[0]
        (['difficulty.csv', 'readme.txt', 'test', 'train'], 'path,difficulty,yaw,group,resolution')
    """
    root, factors = Path(root), tuple(factors)
    _check(train_ids, val_ids, test_ids, easy, hard, probes, size, factors, folds, pairs)
    readme = (
        "Drawn faces; none of these people exists.\n"
        f"{train_ids=} {val_ids=} {test_ids=} {easy=} {hard=} {probes=} {size=} {factors=} {folds=} {pairs=} {seed=}\n"
    )
    counts = {
        "train": (train_ids, easy, hard),
        "val": (val_ids, 1 + probes, probes),
        "test": (test_ids, 1 + probes, probes),
    }

    def write(draft: Path) -> None:
        plan = [picture for split in SPLITS for picture in _plan(split, *counts[split], factors, seed)]
        _write(draft, plan, size, folds, pairs, seed)

    place_described(root, readme, write)
    return root


def picture_of(number: int, seed: int, index: int, yaw: float, resolution: int = 1, size: int = 64) -> Image.Image:
    """One picture of a person, in a pose, light and place that are drawn from the numbers.

    Args:
        number: of the person.
        seed: decides people and pictures.
        index: of the picture.
        yaw: degrees to the right of the picture.
        resolution: factor by which it is down-sampled before it comes back to size; 1 leaves it sharp.
        size: height and width in pixels.

    Example:
        >>> picture_of(0, 0, 1, yaw=10.0, resolution=4, size=32).size
        (32, 32)
    """
    random = np.random.default_rng([seed, number, index, 11])
    pose = Pose(
        yaw,
        roll=random.normal(0, 2),
        shift=(random.uniform(-0.03, 0.03), random.uniform(-0.03, 0.03)),
        scale=random.uniform(0.95, 1.05),
        smile=random.uniform(-0.4, 1.0),
        open=max(0.0, random.uniform(-1.0, 0.8)),
        gaze=(random.uniform(-0.5, 0.5), random.uniform(-0.3, 0.3)),
    )
    warm = random.normal(0, 0.03)
    red, green, blue = random.uniform(0.82, 1.08) * np.array([1 + warm, 1.0, 1 - warm])
    light = Light(random.uniform(-60, 60), random.uniform(0, 50), random.uniform(0.1, 0.45), (red, green, blue))
    clothes = tuple(random.uniform(0.2, 0.8, 3))
    image = draw_face(face_identity(number, seed), pose, light, size, _background(size, random), clothes)
    if resolution > 1:
        image = np.asarray(low_resolution(Image.fromarray(image), resolution))
    pixels = image + np.float32(random.uniform(2, 7)) * random.standard_normal(image.shape, np.float32)
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _background(size: int, random: np.random.Generator) -> NDArray[np.float64]:
    """A room out of focus: a gradient and a few soft spots."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    first, second = random.uniform(0.25, 0.75, (2, 1)) + random.uniform(-0.12, 0.12, (2, 3))
    turn = random.uniform(0, 2 * np.pi)
    share = 0.5 + 0.5 * (np.cos(turn) * (2 * x - 1) + np.sin(turn) * (2 * y - 1)) / 1.5
    colours = first + share[..., None] * (second - first)
    for _ in range(random.integers(0, 4)):
        left, top, wide = random.uniform((0, 0, 0.05), (1, 1, 0.2))
        spot = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * wide**2))
        colours += 0.5 * spot[..., None] * (random.uniform(0.2, 0.8, 3) - colours)
    return colours.clip(0, 1)


def _check(
    train_ids: int,
    val_ids: int,
    test_ids: int,
    easy: int,
    hard: int,
    probes: int,
    size: int,
    factors: tuple[int, ...],
    folds: int,
    pairs: int,
) -> None:
    least = {"train_ids": (train_ids, 1), "easy": (easy, 1), "hard": (hard, 0), "probes": (probes, 1)}
    for name, (value, low) in (least | {"size": (size, 16), "folds": (folds, 1), "pairs": (pairs, 1)}).items():
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    for name, value in {"train_ids": train_ids, "val_ids": val_ids, "test_ids": test_ids}.items():
        if value > MOST:
            raise ValueError(f"{name} must be at most {MOST}, got {value}")
    for name, value in {"val_ids": val_ids, "test_ids": test_ids}.items():
        if value < 0 or value == 1:
            raise ValueError(f"{name} must be 0 (none) or at least 2, since pairs need other identities, got {value}")
        if value and folds > value * probes:
            raise ValueError(
                f"folds={folds} are too many for {name}={value} and probes={probes}: at most {value * probes}"
            )
    if not factors or min(factors) < 2:
        raise ValueError(f"factors must be whole numbers from 2 on, got {list(factors)}")


@cache
def _names(seed: int) -> list[str]:
    """Names for all numbers there are, none twice."""
    every = [f"{a}{b}_{c}{d}" for a, b, c, d in product(*NAMES)]
    return [every[i] for i in np.random.default_rng([seed, 12]).permutation(len(every))]


def _plan(split: str, ids: int, easy: int, hard: int, factors: tuple[int, ...], seed: int) -> list[_Picture]:
    """The pictures of a split, identity by identity, the easy ones first."""
    pictures = []
    for number in range(SPLITS.index(split) * MOST, SPLITS.index(split) * MOST + ids):
        random = np.random.default_rng([seed, number, 13])
        # every identity has hard pictures of all turns, the last of four beyond 41 degrees
        turns = (random.permutation(hard) + random.random(hard)) / max(hard, 1) * HARD_YAW
        yaws = [*random.uniform(-EASY_YAW, EASY_YAW, easy), *(turns * random.choice((-1, 1), hard))]
        resolutions = [1] * easy + random.choice(factors, hard).tolist()
        for index, (yaw, resolution) in enumerate(zip(yaws, resolutions, strict=True), 1):
            pictures.append(_Picture(split, _names(seed)[number], number, index, round(float(yaw), 1), resolution))
    return pictures


def _write(root: Path, plan: list[_Picture], size: int, folds: int, pairs: int, seed: int) -> None:
    for picture in plan:
        path = root / picture.split / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture_of(picture.number, seed, picture.index, picture.yaw, picture.resolution, size)
        image.save(path, quality=95)
    train = [picture for picture in plan if picture.split == "train"]
    rows = [(p.path, p.difficulty, p.yaw, face_identity(p.number, seed).look, p.resolution) for p in train]
    _csv(root / "difficulty.csv", ("path", "difficulty", "yaw", "group", "resolution"), rows)
    for split in SPLITS[1:]:
        if pictures := [picture for picture in plan if picture.split == split]:
            _write_lists(root / split, pictures, folds, pairs, seed)


def _write_lists(folder: Path, pictures: list[_Picture], folds: int, pairs: int, seed: int) -> None:
    rows = [(p.path, p.name, "gallery" if p.index == 1 else p.difficulty) for p in pictures]
    _csv(folder / "probes.csv", ("path", "label", "group"), rows)
    random = np.random.default_rng([seed, pictures[0].number, 14])
    easy, hard = ([p for p in pictures if p.difficulty == kind] for kind in ("easy", "hard"))
    _pairs(folder / "pairs.txt", list(combinations(easy, 2)), folds, pairs, random)
    if folder.name == "test":
        _pairs(folder / "hard_pairs.txt", list(product(easy, hard)), folds, pairs, random)


def _pairs(
    path: Path, every: list[tuple[_Picture, _Picture]], folds: int, pairs: int, random: np.random.Generator
) -> None:
    """Draw pairs and list them as LFW does: in each fold those of one identity, then those of two."""
    same = [(a, b) for a, b in every if a.number == b.number]
    different = [(a, b) for a, b in every if a.number != b.number]
    count = min(pairs, len(same) // folds, len(different) // folds)
    lines = [f"{folds}\t{count}"]
    drawn = [[kind[i] for i in random.choice(len(kind), folds * count, replace=False)] for kind in (same, different)]
    for fold in range(folds):
        place = slice(fold * count, (fold + 1) * count)
        lines += [f"{a.name}\t{a.index}\t{b.index}" for a, b in drawn[0][place]]
        lines += [f"{a.name}\t{a.index}\t{b.name}\t{b.index}" for a, b in drawn[1][place]]
    path.write_text("\n".join(lines) + "\n")


def _csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in (header, *rows)))
