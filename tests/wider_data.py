"""Small sets in the layout of WIDER FACE, for tests: pictures of one colour, lists, and files of the evaluation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Faces = Mapping[str, Sequence[Sequence[int]]]  # path to rows of ten numbers, or of four: the others are then 0


def list_text(pictures: Faces, zero_line: bool = True) -> str:
    """A list as it is distributed, with a blank at the end of each face."""
    lines = []
    for file, faces in pictures.items():
        rows = [[*face, *[0] * (10 - len(face))] for face in faces]
        lines += [file, str(len(rows))]
        lines += ["".join(f"{number} " for number in row) for row in rows or [[0] * 10] * zero_line]
    return "\n".join(lines) + "\n"


def write_split(root: Path, split: str, pictures: Faces, size: tuple[int, int] = (64, 48)) -> Path:
    """Pictures and list of ``train`` or ``val``; picture k has the grey level k."""
    folder = root / f"WIDER_{split}" / "images"
    for number, file in enumerate(pictures):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number,) * 3).save(folder / file)
    path = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(list_text(pictures))
    return path


def write_mat(path: Path, boxes: Faces, counted: Mapping[str, Sequence[int]] | None = None) -> Path:
    """A file of the evaluation: name (event/stem) to boxes, and for a level to the faces that count, from 1."""
    events = list(dict.fromkeys(map(_event, boxes)))
    names = {event: [name for name in boxes if _event(name) == event] for event in events}

    def nested(cell):
        return _column([_column([cell(name) for name in names[event]]) for event in events])

    content = {
        "event_list": _column([np.array([event]) for event in events]),
        "file_list": nested(lambda name: np.array([name.rpartition("/")[2]])),
        "face_bbx_list": nested(lambda name: np.array(boxes[name], np.int32).reshape(-1, 4)),
    }
    if counted is not None:
        content["gt_list"] = nested(lambda name: np.array(counted.get(name, []), np.uint8).reshape(-1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)
    return path


def write_truth(folder: Path, boxes: Faces, **counted: Mapping[str, Sequence[int]]) -> Path:
    """All four files; ``easy``, ``medium`` and ``hard`` say which faces count, from 1."""
    write_mat(folder / "wider_face_val.mat", boxes)
    for level in ("easy", "medium", "hard"):
        write_mat(folder / f"wider_{level}_val.mat", boxes, counted.get(level, {}))
    return folder


def _event(name: str) -> str:
    return name.rpartition("/")[0]


def _column(cells: list) -> np.ndarray:
    column = np.empty((len(cells), 1), object)
    for row, cell in enumerate(cells):
        column[row, 0] = cell
    return column
