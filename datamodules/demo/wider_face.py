"""A small set to train and evaluate face detectors on, in WIDER FACE's layout: drawn people over photographs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.demo.face_scenes import SPLITS, SceneFace, face_scene
from datamodules.demo.placing import place_described

EVENTS = ("0--Parade", "11--Meeting", "2--Demonstration", "22--Picnic", "35--Basketball", "59--people--driving--car")
LEVELS = ("easy", "medium", "hard")
LEAST = {"easy": 40, "medium": 24, "hard": 15}  # height of a face in pixels
SHORTEST = 128  # a detector's largest stride
ASPECTS = ((1.0, 1.0), (1.0, 1.0), (0.8, 1.2), (1.0, 1.0), (1.25, 0.75), (1.1, 1.3))  # of validation pictures
FACELESS = 12  # of so many pictures one has no faces
_HEADER = b"MATLAB 5.0 MAT-file, drawn faces in the layout of WIDER FACE"

Scene = tuple[str, str, list[SceneFace]]  # event, stem, faces


def write_wider_face(
    root: str | Path,
    train: int = 160,
    val: int = 60,
    test: int = 0,
    size: tuple[int, int] = (192, 224),
    heights: tuple[float, float] = (12.0, 110.0),
    faces: int = 8,
    seed: int = 0,
) -> Path:
    """Write a small set of pictures with faces in the layout of WIDER FACE.

    ``root`` gets ``WIDER_train/images/<event>/*.jpg`` and likewise ``WIDER_val`` and ``WIDER_test``,
    ``wider_face_split/wider_face_{train,val}_bbx_gt.txt`` and, for the test pictures, which have no annotation,
    ``wider_face_test_filelist.txt``; in ``eval_tools/ground_truth`` the four files of the evaluation. A face's box is
    the extent of its head, also where something hides a part of it. The sixth picture and every twelfth after it have
    no faces: a count of 0 and a line of zeros in the lists, one box of zeros in the evaluation's files, as in the
    official ones.

    Levels, ours: easy is what is not blurred heavily, not hidden and at least 40 pixels high, medium at least 24 and
    not hidden heavily, hard at least 15 and not hidden heavily; invalid faces, below ``heights``, are in none.

    Each split has people, parts of the photographs and patterns of its own. Training pictures have ``size``; of the
    others half do. It is written beside ``root`` and then renamed, so that nobody finds half of it. The very same set
    is left as it is.

    Args:
        root: a folder that is empty or not there yet.
        train: pictures to train on, at least 1.
        val: others, at least 1.
        test: others again, without annotation.
        size: height and width in pixels, at least 128.
        heights: of heads in pixels, the least and the most; all magnitudes between them are equally likely. Not more
            than 0.55 of the shorter side is used.
        faces: the most in a picture, at least 1.
        seed: decides everything.

    Returns:
        ``root``, to hand to ``WIDERFaceDataModule``.

    Raises:
        ValueError: a number is out of range, or ``root`` has something else in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = write_wider_face(Path(folder, "widerface"), train=1, val=1, size=(128, 128), faces=1)
        ...     sorted(path.name for path in root.iterdir())
        ...     (root / "wider_face_split" / "wider_face_val_bbx_gt.txt").read_text().splitlines()[:2]
        ['WIDER_train', 'WIDER_val', 'eval_tools', 'readme.txt', 'wider_face_split']
        ['0--Parade/0_Parade_Parade_0_1.jpg', '1']
    """
    root, size, heights = Path(root), (size[0], size[1]), (float(heights[0]), float(heights[1]))
    _check(train, val, test, size, heights, faces, seed)
    readme = (
        "Drawn people over the photographs china.jpg and flower.jpg of scikit-learn, in the layout of WIDER FACE; none "
        f"of these people exists.\n{train=} {val=} {test=} {size=} {heights=} {faces=} {seed=}\n"
    )
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    place_described(root, readme, lambda draft: _write(draft, counts, size, heights, faces, seed))
    return root


def levels_of(face: SceneFace) -> tuple[str, ...]:
    """The levels that a drawn face counts in.

    Args:
        face: of a picture.

    Example:
        >>> levels_of(SceneFace((0, 0, 20, 26), blur=0, expression=0, illumination=0, invalid=0, occlusion=1, pose=0))
        ('medium', 'hard')
    """
    plain = face.blur < 2 and face.occlusion == 0
    told = not face.invalid and face.occlusion < 2
    fits = {"easy": told and plain, "medium": told, "hard": told}
    return tuple(level for level in LEVELS if fits[level] and face.box[3] >= LEAST[level])


def _check(
    train: int,
    val: int,
    test: int,
    size: tuple[int, int],
    heights: tuple[float, float],
    faces: int,
    seed: int,
) -> None:
    least = {"train": (train, 1), "val": (val, 1), "test": (test, 0), "faces": (faces, 1), "seed": (seed, 0)}
    for name, (value, low) in (least | {"height of size": (size[0], 128), "width of size": (size[1], 128)}).items():
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    if not 8 <= heights[0] <= min(heights[1], 0.55 * min(size)):
        raise ValueError(
            f"heights must be two numbers from 8 up, the first not above the second and {0.55 * min(size):g}, 0.55 of "
            f"the shorter side, got {list(heights)}"
        )


def _write(
    root: Path, counts: dict[str, int], size: tuple[int, int], heights: tuple[float, float], faces: int, seed: int
) -> None:
    (root / "wider_face_split").mkdir(parents=True)
    for split, count in counts.items():
        scenes = [_scene(root, split, number, size, heights, faces, seed) for number in range(count)]
        scenes.sort(key=lambda scene: scene[0])  # the lists go by event; within one by number, as they came
        if split == "test":
            text = "".join(f"{event}/{stem}.jpg\n" for event, stem, _ in scenes)
            if scenes:
                (root / "wider_face_split" / "wider_face_test_filelist.txt").write_text(text)
        else:
            text = "".join(map(_entry, scenes))
            (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text)
        if split == "val":
            _write_truth(root / "eval_tools" / "ground_truth", scenes)


def _scene(
    root: Path,
    split: str,
    number: int,
    size: tuple[int, int],
    heights: tuple[float, float],
    faces: int,
    seed: int,
) -> Scene:
    event, turn = EVENTS[number % len(EVENTS)], number // len(EVENTS) + 1
    first, label = event.split("--", 1)
    label = label.replace("--", "")
    stem = f"{first}_{label}_{label}_{first}_{turn}"
    if split != "train":
        high, wide = ASPECTS[number % len(ASPECTS)]
        size = max(SHORTEST, round(size[0] * high)), max(SHORTEST, round(size[1] * wide))
    picture, found = face_scene(split, number, size, heights, faces if number % FACELESS != 5 else 0, seed)
    path = root / f"WIDER_{split}" / "images" / event / f"{stem}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=95)
    return event, stem, found


def _entry(scene: Scene) -> str:
    """The lines of a picture in a list, with a blank at the end of those of faces, as in the official ones."""
    event, stem, faces = scene
    rows = [(*face.box, *face.attributes) for face in faces] or [(0,) * 10]
    return f"{event}/{stem}.jpg\n{len(faces)}\n" + "".join(" ".join(map(str, row)) + " \n" for row in rows)


def _write_truth(folder: Path, scenes: list[Scene]) -> None:
    """Four MATLAB files: cells of events that hold cells of pictures."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    events = sorted({event for event, _, _ in scenes})
    by_event = [[scene for scene in scenes if scene[0] == event] for event in events]
    rows = [
        [np.array([(*face.box, *face.attributes) for face in faces] or [(0,) * 10], np.int32) for _, _, faces in each]
        for each in by_event
    ]
    names = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
    content = {
        "event_list": _cells(events),
        "file_list": _cells([_cells([stem for _, stem, _ in each]) for each in by_event]),
        "face_bbx_list": _cells([_cells([row[:, :4] for row in each]) for each in rows]),
    }
    for i, name in enumerate(names):
        labels = [_cells([row[:, 4 + i : 5 + i].astype(np.uint8) for row in each]) for each in rows]
        content[f"{name}_label_list"] = _cells(labels)

    def save(name: str, values: dict[str, Any]) -> None:
        savemat(folder / name, values, do_compression=True)
        with (folder / name).open("r+b") as file:  # its first 116 bytes are text, with the time in it
            file.write(_HEADER.ljust(116))

    save("wider_face_val.mat", content)
    for level in LEVELS:
        kept = [_cells([_kept(faces, level) for _, _, faces in each]) for each in by_event]
        save(f"wider_{level}_val.mat", content | {"gt_list": _cells(kept)})


def _kept(faces: list[SceneFace], level: str) -> NDArray[np.uint8]:
    """Places of the faces that count, from 1, (n, 1)."""
    return np.array([i for i, face in enumerate(faces, 1) if level in levels_of(face)], np.uint8).reshape(-1, 1)


def _cells(values: Sequence[Any]) -> NDArray[np.object_]:
    """A column of cells."""
    column = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        column[i, 0] = value
    return column
