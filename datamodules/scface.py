"""SCface: a frontal mugshot of each person, and pictures of five cameras at three distances."""

import os
import re
from pathlib import Path

import numpy as np

from datamodules.face_probes import FaceProbes, check_probes
from lit_methods.functional.suggestions import shorten
from lit_methods.functional.text_lines import read_lines

DISTANCES = ("d1", "d2", "d3")  # 4.20, 2.60 and 1.00 m
SUBJECTS = "test_subjects.txt"

_FRONTAL = re.compile(r"(\d+)_frontal\.(?:jpe?g|png)", re.IGNORECASE)
_CAMERA = re.compile(r"(\d+)_cam([1-5])_([1-3])\.(?:jpe?g|png)", re.IGNORECASE)


def read_scface(folder: Path) -> FaceProbes:
    """Read a folder of SCface: mugshots are the gallery, the three distances are the groups ``d1``, ``d2``, ``d3``.

    Files are found by their names in the folder and all below it: ``001_frontal.jpg`` and ``001_cam1_1.jpg`` to
    ``001_cam5_3.jpg``, where the last number is the distance. Others, such as the infrared cameras 6 to 8, are left
    out. The test has all persons, unless ``test_subjects.txt`` in the folder names some, a number a line; the protocol
    of the papers tests 80 of the 130, drawn at random.

    Args:
        folder: of aligned pictures.

    Returns:
        Files with persons and groups, sorted by person, mugshot first.

    Raises:
        ValueError: no picture has such a name, two files have the same one, a person has no mugshot, a distance has no
            pictures, or ``test_subjects.txt`` does not parse or names others.

    Source:
        SCface (Grgic et al. 2011): names and distances; rank-1 as in DCR and DDL.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for person in ("001", "002"):
        ...         for name in ("frontal", "cam1_1", "cam3_2", "cam5_3", "cam6_1"):
        ...             Path(folder, f"{person}_{name}.jpg").touch()
        ...     found = read_scface(Path(folder))
        >>> found.group, found.identities, found.groups
        (array([-1,  0,  1,  2, -1,  0,  1,  2]), ['1', '2'], ('d1', 'd2', 'd3'))
    """
    found = _find(folder)  # (person, distance from 1 or 0, camera or 0) to file
    persons = sorted({person for person, _, _ in found})
    if not persons:
        raise ValueError(
            f"folder {str(folder)!r} has no pictures of SCface: no names such as 001_frontal.jpg and 001_cam1_1.jpg in "
            "it or below it"
        )
    persons = _chosen(folder, persons)
    numbers = {person: number for number, person in enumerate(persons)}
    if missing := [person for person in persons if (person, 0, 0) not in found]:
        raise ValueError(f"folder {str(folder)!r} has no mugshot {{id}}_frontal.jpg of subjects {shorten(missing)}")
    keys = sorted(key for key in found if key[0] in numbers)
    probes = FaceProbes(
        [found[key] for key in keys],
        np.array([numbers[person] for person, _, _ in keys], np.int64),
        np.array([distance - 1 for _, distance, _ in keys], np.int64),
        [str(person) for person in persons],
        DISTANCES,
    )
    if empty := [name for number, name in enumerate(DISTANCES) if not (probes.group == number).any()]:
        ends = shorten(f"_{name[1]}.jpg" for name in empty)
        raise ValueError(f"folder {str(folder)!r} has no pictures of {', '.join(empty)}: no {{id}}_cam1..5{ends}")
    check_probes(probes, folder)
    return probes


def _find(folder: Path) -> dict[tuple[int, int, int], str]:
    found: dict[tuple[int, int, int], str] = {}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if frontal := _FRONTAL.fullmatch(name):
                key = int(frontal[1]), 0, 0
            elif camera := _CAMERA.fullmatch(name):
                key = int(camera[1]), int(camera[3]), int(camera[2])
            else:
                continue
            file = os.path.relpath(os.path.join(parent, name), folder)
            if key in found:
                raise ValueError(
                    f"folder {str(folder)!r} has two files for the same picture, {found[key]} and {file}; put the "
                    "aligned ones into a folder of their own"
                )
            found[key] = file
    return found


def _chosen(folder: Path, persons: list[int]) -> list[int]:
    """Those that the list of test subjects names; all where there is none."""
    if not (path := folder / SUBJECTS).is_file():
        return persons
    chosen: dict[int, int] = {}
    for line in read_lines(path):
        if not line.text:
            continue
        person = line.whole(line.text.strip(), "a subject")
        if person not in persons:
            raise line.fault(f"the folder has no pictures of subject {person}")
        if person in chosen:
            raise line.fault(f"subject {person} is in line {chosen[person]} already")
        chosen[person] = line.number
    if not chosen:
        raise ValueError(f"{str(path)!r} is empty; name the subjects of the test, one a line, or remove the file")
    return sorted(chosen)
