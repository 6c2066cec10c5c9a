"""Small videos to track in, in LaSOT's layout: drawn things that move over photographs.

Each video has one thing to follow, others that move behind it, a camera that pans slowly and a light that may change.
In some a pillar passes in front of the target, in some it leaves the picture for a while.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.demo.placing import place_described
from datamodules.demo.tracking_clips import tracking_clip
from datamodules.demo.tracking_drawing import PHOTOGRAPHS, SHAPES, SPLITS, Clip, Shot


def write_tracking(
    root: str | Path,
    train: int = 24,
    test: int = 8,
    frames: int = 40,
    size: tuple[int, int] = (240, 320),
    speed: float = 6.0,
    others: int = 1,
    seed: int = 0,
) -> Path:
    """Write a small set of videos in the layout of LaSOT.

    ``root`` gets ``testing_set.txt`` and ``<shape>/<shape>-<number>/`` with ``img/00000001.jpg`` and so on,
    ``groundtruth.txt`` (x, y, w, h in whole pixels: the extent of what is seen of the target; 0, 0, 0, 0 where that is
    less than a tenth of it), ``full_occlusion.txt``, ``out_of_view.txt`` and ``nlp.txt``; beside these folders
    ``att/<video>.txt``, the 14 flags of LaSOT's evaluation toolkit. Test videos have the first numbers of their shape;
    what they hold does not depend on ``train``. No training video shows their parts of the photographs or the patterns
    of their things.

    Of six videos of a split the second has a pillar that hides the target for a few frames, and in the fifth the target
    leaves, if the clip gives it the time (24 frames do with the other defaults). The first frame shows all of it.

    It is written beside ``root`` and then renamed, so that nobody finds half of it. The very same set is left as it is.

    Args:
        root: a folder that is empty or not there yet.
        train: videos to train on, at least 1.
        test: others, at least 1.
        frames: of each video.
        size: height and width in pixels, at least 48.
        speed: the most that the middle of a thing moves from one frame to the next, in pixels.
        others: moving things behind the target.
        seed: decides everything.

    Returns:
        ``root``, to hand to ``LaSOTDataModule``.

    Raises:
        ValueError: a number is out of range, or ``root`` has something else in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_tracking(Path(folder, "lasot"), train=1, test=1, frames=2, size=(48, 64))
        ...     sorted(path.name for path in root.iterdir()), (root / "testing_set.txt").read_text()
        ...     sorted(path.name for path in (root / "ellipse" / "ellipse-2").iterdir())
        (['att', 'ellipse', 'readme.txt', 'testing_set.txt'], 'ellipse-1\\n')
        ['full_occlusion.txt', 'groundtruth.txt', 'img', 'nlp.txt', 'out_of_view.txt']
    """
    root, size = Path(root), (size[0], size[1])
    _check(train, test, frames, size, speed, others, seed)
    readme = (
        "Drawn things over the photographs china.jpg and flower.jpg of scikit-learn, in the layout of LaSOT.\n"
        f"{train=} {test=} {frames=} {size=} {speed=} {others=} {seed=}\n"
    )
    counts = {"train": train, "test": test}
    place_described(root, readme, lambda draft: _write(draft, counts, frames, size, speed, others, seed))
    return root


def _check(train: int, test: int, frames: int, size: tuple[int, int], speed: float, others: int, seed: int) -> None:
    least = {"train": (train, 1), "test": (test, 1), "frames": (frames, 1), "others": (others, 0), "seed": (seed, 0)}
    for name, (value, low) in (least | {"height of size": (size[0], 48), "width of size": (size[1], 48)}).items():
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if not 0 < speed < min(size) / 4:
        raise ValueError(f"speed must be above 0 and below a quarter of the shorter side, {min(size) / 4}, got {speed}")


def _names(counts: dict[str, int]) -> Iterator[tuple[str, int, str]]:
    """Split, number in it and name of each video, test videos first."""
    used = dict.fromkeys(SHAPES, 0)
    for split in reversed(SPLITS):
        for number in range(counts[split]):
            shape = SHAPES[number % len(SHAPES)]
            used[shape] += 1
            yield split, number, f"{shape}-{used[shape]}"


def _write(
    root: Path, counts: dict[str, int], frames: int, size: tuple[int, int], speed: float, others: int, seed: int
) -> None:
    (root / "att").mkdir(parents=True)
    for split, number, name in _names(counts):
        clip = tracking_clip(split, number, frames, size, speed, others, seed)
        folder = root / name.rpartition("-")[0] / name
        (folder / "img").mkdir(parents=True)
        shots = []
        for frame in range(frames):
            shot = clip.shot(frame)
            Image.fromarray(shot.picture).save(folder / "img" / f"{frame + 1:08d}.jpg", quality=90)
            shots.append(shot)
        (folder / "groundtruth.txt").write_text("".join(f"{x},{y},{w},{h}\n" for x, y, w, h in (s.box for s in shots)))
        _flags(folder / "full_occlusion.txt", [shot.full_occlusion for shot in shots])
        _flags(folder / "out_of_view.txt", [shot.out_of_view for shot in shots])
        (folder / "nlp.txt").write_text(f"{clip.target.words} over a photograph of {PHOTOGRAPHS[clip.photograph]}\n")
        _flags(root / "att" / f"{name}.txt", attributes(clip, shots))
    tests = [name for split, _, name in _names(counts) if split == "test"]
    (root / "testing_set.txt").write_text("".join(f"{name}\n" for name in tests))


def attributes(clip: Clip, shots: list[Shot]) -> list[bool]:
    """The 14 flags of a video in the order of LaSOT's evaluation toolkit.

    Illumination variation (light that changes by more than 15 %), partial occlusion (more than a twentieth hidden),
    deformation, motion blur, camera motion (abrupt), rotation (more than 20 degrees), background clutter, viewpoint
    change, scale variation (area of the box below half or above twice the first), full occlusion, fast motion (a step
    longer than the box), out of view, low resolution (below 1,000 pixels), aspect ratio change (below half or above
    twice the first). What is never drawn is 0.

    Args:
        clip: what was drawn.
        shots: all its frames.

    Example:
        >>> clip = tracking_clip("train", 0, frames=1)
        >>> sum(attributes(clip, [clip.shot(0)]))
        0
    """
    boxes = np.array([shot.box for shot in shots], float)
    areas, present = boxes[:, 2] * boxes[:, 3], boxes[:, 2] > 0
    area, aspect = areas[present], boxes[present, 2] / boxes[present, 3]
    angles = [pose.angle for pose in clip.poses]
    moved = np.hypot(*np.diff([(pose.x, pose.y) for pose in clip.poses], axis=0).reshape(-1, 2).T)
    inside = [shot for shot in shots if not shot.out_of_view]
    light = float(np.ptp(clip.light) / clip.light.mean())
    partial = clip.pillar is not None and any(shot.seen < 0.95 for shot in inside)
    fast = bool((moved > np.sqrt(areas[1:]))[present[1:]].any())

    def leaves_half_to_twice(values: NDArray[np.float64]) -> bool:
        ratios = values / values[0]
        return bool(ratios.min() < 0.5 or ratios.max() > 2)

    return [
        light > 0.15,
        partial,
        False,
        False,
        False,
        max(angles) - min(angles) > math.radians(20),
        False,
        False,
        leaves_half_to_twice(area),
        any(shot.full_occlusion for shot in shots),
        fast,
        any(shot.out_of_view for shot in shots),
        bool(area.min() < 1000),
        leaves_half_to_twice(aspect),
    ]


def _flags(path: Path, flags: list[bool]) -> None:
    path.write_text(",".join(str(int(flag)) for flag in flags) + "\n")
