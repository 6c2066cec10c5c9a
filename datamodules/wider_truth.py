"""What WIDER FACE is evaluated against: the four files of its evaluation, or a list alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from datamodules.wider_files import ATTRIBUTES, FaceList

LEVELS = ("easy", "medium", "hard")
FACES = "wider_face_val.mat"
LEVEL_FILES = {level: f"wider_{level}_val.mat" for level in LEVELS}
PLACES, BESIDE = ("eval_tools/ground_truth", "eval_ground_truth"), "../eval_tools/ground_truth"  # from the root


@dataclass(frozen=True)
class FaceTruth:
    """The faces that detections are compared with; lists have an entry for each picture.

    Args:
        names: event and stem, such as ``0--Parade/0_Parade_marchingband_1_465``.
        boxes: ``(n, 4)`` float64 each: x, y, w, h in pixels.
        attributes: ``(n, 6)`` int64 each: blur, expression, illumination, invalid, occlusion, pose.
        keep: level to the faces that count, ``(n,)`` bool each; empty where levels are not known.
        files: paths of the pictures, from their folder; empty where only the evaluation's files were read.
    """

    names: list[str]
    boxes: list[NDArray[np.float64]]
    attributes: list[NDArray[np.int64]]
    keep: dict[str, list[NDArray[np.bool_]]]
    files: list[str]

    def __len__(self) -> int:
        return len(self.names)


def find_truth(root: Path, eval_tools: str | None = None, beside: bool = True) -> Path | None:
    """The folder with the files of the evaluation.

    Args:
        root: of the data set.
        eval_tools: that folder, or the one that holds ``ground_truth``; ``None`` looks for ``eval_tools/ground_truth``
            in ``root`` and beside it, and for ``eval_ground_truth`` in ``root``; ``"none"`` does without.
        beside: whether it looks beside ``root``.

    Returns:
        The folder, or ``None`` where there is none and none was named.

    Raises:
        FileNotFoundError: some of the four files are missing; names them.

    Example:
        >>> find_truth(Path("nowhere")) is None
        True
    """
    if eval_tools == "none":
        return None
    places = [root / place for place in (*PLACES, *[BESIDE] * beside)]
    if eval_tools is not None:
        places = [Path(eval_tools, "ground_truth"), Path(eval_tools)]
    for place in places:
        missing = [name for name in (FACES, *LEVEL_FILES.values()) if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) <= len(LEVELS):
            raise FileNotFoundError(
                f"the files of the evaluation are incomplete in {str(place)!r}: no {', '.join(missing)}. Unpack "
                "eval_tools.zip of WIDER FACE again, or remove the others to evaluate without levels."
            )
    if eval_tools is not None:
        raise FileNotFoundError(
            f"eval_tools={eval_tools!r} has none of {', '.join((FACES, *LEVEL_FILES.values()))}. Unpack eval_tools.zip "
            "of WIDER FACE and name its folder ground_truth; null looks in root and beside it."
        )
    return None


def read_truth(folder: Path) -> FaceTruth:
    """Read ``wider_face_val.mat`` and ``wider_{easy,medium,hard}_val.mat``.

    Args:
        folder: holds the four.

    Returns:
        All pictures in the order of the files, with levels and without paths.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one has another form, or a level has other pictures or boxes than ``wider_face_val.mat``; names the
            file and the first picture.

    Source:
        Section 5 of the paper's file: event i, picture j is ``face_bbx_list[i][0][j][0]``; ``gt_list`` counts from 1.
    """
    events = _load(folder / FACES)
    names = _names(folder / FACES, events)
    boxes = _cells(folder / FACES, events, "face_bbx_list", 4)
    _check_length(folder / FACES, names, boxes)
    attributes = _attributes(folder / FACES, events, [len(each) for each in boxes])
    keep: dict[str, list[NDArray[np.bool_]]] = {}
    for level, file in LEVEL_FILES.items():
        path = folder / file
        content = _load(path)
        if (others := _names(path, content)) != names:
            lost = [name for name in names if name not in set(others)]
            first = lost[0] if lost else next((name for name in others if name not in set(names)), names[0])
            raise ValueError(
                f"{str(path)!r} is of other pictures than {FACES} beside it: they differ in {first!r}. All four must "
                "be of one split and release."
            )
        for name, one, other in zip(names, boxes, _cells(path, content, "face_bbx_list", 4), strict=True):
            if not np.array_equal(one, other):
                raise ValueError(
                    f"{str(path)!r} has other faces of {name!r} than {FACES} beside it. All four must be of one split "
                    "and release."
                )
        keep[level] = _masks(path, content, names, [len(each) for each in boxes])
    return FaceTruth(names, [each.astype(np.float64) for each in boxes], attributes, keep, [])


def truth_of_list(faces: FaceList) -> FaceTruth:
    """All faces of a list, without levels.

    Args:
        faces: the list.

    Example:
        >>> rows = np.array([[1, 2, 3, 4, 0, 0, 0, 1, 0, 0]])
        >>> truth = truth_of_list(FaceList(Path("list.txt"), ["a/1.jpg"], np.array([1]), rows))
        >>> truth.names, truth.boxes[0].tolist(), truth.attributes[0].tolist()
        (['a/1'], [[1.0, 2.0, 3.0, 4.0]], [[0, 0, 0, 1, 0, 0]])
    """
    rows = [faces.faces_of(number) for number in range(len(faces))]
    boxes = [each[:, :4].astype(np.float64) for each in rows]
    return FaceTruth(faces.names, boxes, [each[:, 4:] for each in rows], {}, faces.files)


def levelled_truth(faces: FaceList, truth: FaceTruth, folder: Path) -> FaceTruth:
    """The pictures of a list, with the boxes and levels of the evaluation's files.

    The boxes of these files are the truth, as the official tool has it, those marked as invalid among them. They have
    one box of zeros in each of the four pictures that the list has no faces of.

    Args:
        faces: of the list; it may leave pictures out.
        truth: of the files.
        folder: their place, for messages.

    Raises:
        ValueError: a picture is not in the files, or has other faces there; names the first.
    """
    places = {name: place for place, name in enumerate(truth.names)}
    listed = truth_of_list(faces)
    lost = [name for name in listed.names if name not in places]
    if lost:
        raise ValueError(
            f"{str(folder / FACES)!r} is of another split than {str(faces.path)!r}: it lacks {len(lost)} of its "
            f"{len(faces)} pictures, the first is {lost[0]!r}. Name the files of this split in eval_tools, or their "
            "list in test_list."
        )
    chosen = [places[name] for name in listed.names]
    attributes = []
    for name, place, boxes, labels in zip(listed.names, chosen, listed.boxes, listed.attributes, strict=True):
        there = truth.boxes[place]
        if not np.array_equal(boxes, there) and (len(boxes) or there.any()):
            raise ValueError(
                f"{str(folder / FACES)!r} has other faces of {name!r} than {str(faces.path)!r}: {len(there)} and "
                f"{len(boxes)}, or elsewhere. Both must be of one release."
            )
        attributes.append(labels if len(boxes) else truth.attributes[place])
    if len(chosen) < len(truth):
        rank_zero_warn(
            f"{str(faces.path)!r} has {len(chosen)} of the {len(truth)} pictures of the evaluation's files: figures "
            "are of these and compare with no published ones"
        )
    keep = {level: [masks[place] for place in chosen] for level, masks in truth.keep.items()}
    return FaceTruth(listed.names, [truth.boxes[place] for place in chosen], attributes, keep, listed.files)


def _load(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is missing; unpack eval_tools.zip of WIDER FACE again")
    try:
        return loadmat(path)
    except Exception as error:  # the reader raises nearly anything on what is not its format
        raise _refuse(path, f"it cannot be read ({type(error).__name__})") from error


def _refuse(path: Path, fault: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is no such file of WIDER FACE's evaluation: {fault}. Unpack eval_tools.zip again."
    )


def _events(path: Path, content: dict[str, Any], key: str) -> list[NDArray[Any]]:
    if key not in content:
        raise _refuse(path, f"it has no {key}")
    return [np.asarray(event).ravel() for event in content[key].ravel()]


def _names(path: Path, content: dict[str, Any]) -> list[str]:
    events, lists = _events(path, content, "event_list"), _events(path, content, "file_list")
    try:
        pairs = list(zip(events, lists, strict=True))
        names = [f"{event.item()}/{np.asarray(file).item()}" for event, files in pairs for file in files]
    except ValueError:
        raise _refuse(path, "event_list and file_list do not fit each other") from None
    if not names or len(set(names)) < len(names):
        raise _refuse(path, "file_list names no picture, or one twice")
    return names


def _cells(path: Path, content: dict[str, Any], key: str, columns: int) -> list[NDArray[Any]]:
    """A table of numbers for each picture."""
    cells = [np.asarray(cell) for event in _events(path, content, key) for cell in event]
    try:
        tables = [cell.reshape(-1, columns) for cell in cells]
        if all(table.dtype.kind in "iuf" for table in tables if table.size):
            return tables
    except ValueError:
        pass
    raise _refuse(path, f"{key} must have numbers in {columns} column{'s' * (columns > 1)} for each picture")


def _check_length(path: Path, names: list[str], cells: list[NDArray[Any]]) -> None:
    if len(cells) != len(names):
        raise _refuse(path, f"it names {len(names)} pictures and has tables for {len(cells)}")


def _masks(path: Path, content: dict[str, Any], names: list[str], counts: list[int]) -> list[NDArray[np.bool_]]:
    """``gt_list`` as a mask for each picture."""
    cells = _cells(path, content, "gt_list", 1)
    _check_length(path, names, cells)
    masks = []
    for name, cell, count in zip(names, cells, counts, strict=True):
        mask, chosen = np.zeros(count, bool), cell.ravel()
        if chosen.size and (chosen.min() < 1 or chosen.max() > count):
            raise _refuse(path, f"gt_list must count the {count} faces of {name!r} from 1, got {chosen.tolist()}")
        mask[chosen.astype(np.int64) - 1] = True
        masks.append(mask)
    return masks


def _attributes(path: Path, content: dict[str, Any], counts: list[int]) -> list[NDArray[np.int64]]:
    """What the files say about each face; zeros where they do not."""
    tables = [np.zeros((count, len(ATTRIBUTES)), np.int64) for count in counts]
    for column, name in enumerate(ATTRIBUTES):
        if (key := f"{name}_label_list") in content:
            cells = _cells(path, content, key, 1)
            _check_fit(path, key, [len(cell) for cell in cells], counts)
            for table, cell in zip(tables, cells, strict=True):
                table[:, column] = cell[:, 0]
    return tables


def _check_fit(path: Path, key: str, lengths: list[int], counts: list[int]) -> None:
    if lengths != counts:
        raise _refuse(path, f"{key} does not have one number for each face")
