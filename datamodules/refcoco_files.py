"""The annotation files of RefCOCO, RefCOCO+ and RefCOCOg: what is referred to, in which words, and where it is."""

import gc
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.pickles import read_plain
from lit_methods.functional.coco_masks import check_segmentation
from lit_methods.functional.suggestions import first_line, nearest, shorten

# The splits of each data set as one or another of its authors divided it; the first division is the usual one.
SPLITS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"umd": ("train", "val", "test"), "google": ("train", "val")},
}
_OTHER_NAMES = {
    "unc": ("refcoco", "unc"),
    "unc+": ("refcoco+", "unc"),
    "gref": ("refcocog", "google"),
    "gref_umd": ("refcocog", "umd"),
}
_LARGEST_SIDE = 65_535  # of a JPEG


@dataclass(frozen=True)
class Referent:
    """One object of one picture, and the sentences that refer to it.

    Args:
        ref_id: its number in the list of refs.
        ann_id: of its annotation.
        image_id: of its picture.
        category_id: of COCO, 1 to 90; ``None`` where the list does not say.
        split: ``"train"``, ``"val"``, ``"testA"``, ...
        sentences: in lower case without punctuation; one may be empty.
    """

    ref_id: int
    ann_id: int
    image_id: int
    category_id: int | None
    split: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Refs:
    """The list of refs of a data set.

    Args:
        path: the file.
        referents: in its order.
    """

    path: Path
    referents: tuple[Referent, ...]

    def __len__(self) -> int:
        return len(self.referents)


@dataclass(frozen=True)
class Annotation:
    """Where an object is.

    Args:
        bbox: x, y, w, h in pixels, as in the file.
        segmentation: polygons or a run-length code; :func:`lit_methods.functional.coco_masks.segmentation_to_mask`.
        height: of its picture.
        width: of its picture.
        file_name: of its picture.
        image_id: of its picture.
    """

    bbox: tuple[float, float, float, float]
    segmentation: Any
    height: int
    width: int
    file_name: str
    image_id: int


@dataclass(frozen=True)
class Instances:
    """The annotations that a list of refs uses, by their numbers.

    Args:
        path: the file.
        annotations: number to annotation.
    """

    path: Path
    annotations: Mapping[int, Annotation]

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, ann_id: int) -> Annotation:
        return self.annotations[ann_id]


def resolve_dataset(dataset: str, split_by: str | None = None) -> tuple[str, str]:
    """The folder of a data set and who divided it, by either convention of names.

    Args:
        dataset: ``"refcoco"``, ``"refcoco+"``, ``"refcocog"``, or ``"unc"``, ``"unc+"``, ``"gref"``, ``"gref_umd"``,
            which say both.
        split_by: ``"unc"``, ``"umd"`` or ``"google"``; ``None`` is unc for RefCOCO and RefCOCO+, umd for RefCOCOg.

    Returns:
        The name of the folder, and the name in ``refs(<name>).p``.

    Raises:
        ValueError: there is no such data set, or it was not divided so; lists what there is.

    Source:
        Section 5.1; the other names are those of the authors of later papers.

    Example:
        >>> resolve_dataset("refcocog"), resolve_dataset("unc+")
        (('refcocog', 'umd'), ('refcoco+', 'unc'))
        >>> resolve_dataset("refcoco", "umd")
        Traceback (most recent call last):
        ValueError: dataset='refcoco' has no split_by='umd'; there is refcoco with unc or google, refcoco+ with unc, ...
    """
    known = ", ".join(f"{name} with {' or '.join(by)}" for name, by in SPLITS.items())
    folder, own = _OTHER_NAMES.get(dataset, (dataset, None))
    if folder not in SPLITS:
        hint = nearest(dataset, [*SPLITS, *_OTHER_NAMES])
        raise ValueError(f"dataset={dataset!r} is unknown{hint}; there is {known}, and {', '.join(_OTHER_NAMES)}")
    by = split_by or own or next(iter(SPLITS[folder]))
    if by not in SPLITS[folder]:
        raise ValueError(f"dataset={dataset!r} has no split_by={split_by!r}; there is {known}")
    if own and by != own:
        raise ValueError(f"dataset={dataset!r} is {folder} with split_by={own!r}, which split_by={split_by!r} is not")
    return folder, by


def splits_to_test(dataset: str, split_by: str) -> tuple[str, ...]:
    """The splits to test on.

    Args:
        dataset: name of the folder.
        split_by: who divided it; both as :func:`resolve_dataset` gives them.

    Returns:
        None where they were never published.

    Source:
        Section 5.1; ``test`` of RefCOCO as Google divided it is recalled.

    Example:
        >>> splits_to_test("refcoco", "unc"), splits_to_test("refcocog", "umd"), splits_to_test("refcocog", "google")
        (('testA', 'testB'), ('test',), ())
    """
    return tuple(split for split in SPLITS[dataset][split_by] if split.startswith("test"))


def referents_of(refs: Refs, split: str) -> list[Referent]:
    """The referents of a split.

    Args:
        refs: the whole list.
        split: ``"train"`` and ``"val"`` are looked for as such, ``"testA"``, ``"testB"`` and ``"testC"`` by their last
            letter, so that ``testAB`` belongs to two, ``"test"`` anywhere in the name; any other as such.

    Returns:
        In the order of the list; none where the list has no such split.

    Source:
        ``getRefIds`` of the authors' REFER reader.

    Example:
        >>> one, two = (Referent(n, n, 1, None, split, ("left cat",)) for n, split in enumerate(("testA", "testAB")))
        >>> refs = Refs(Path("refs(unc).p"), (one, two))
        >>> [len(referents_of(refs, split)) for split in ("testA", "testB", "test")]
        [2, 1, 2]
    """
    if split in ("testA", "testB", "testC"):
        return [referent for referent in refs.referents if split[-1] in referent.split]
    if split == "test":
        return [referent for referent in refs.referents if "test" in referent.split]
    return [referent for referent in refs.referents if referent.split == split]


def find_refs(folder: Path, split_by: str) -> Path | None:
    """The list of refs: ``refs(<split_by>).json``, else ``refs(<split_by>).p``, else ``None``.

    Args:
        folder: of the data set, such as ``data/refer/refcoco``.
        split_by: who divided it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     Path(root, "refs(unc).p").touch()
        ...     find_refs(Path(root), "unc").name, find_refs(Path(root), "google")
        ('refs(unc).p', None)
    """
    files = (folder / f"refs({split_by}).{ending}" for ending in ("json", "p"))
    return next((file for file in files if file.is_file()), None)


def read_refs(folder: Path, split_by: str) -> Refs:
    """Read and check ``refs(<split_by>).json``, or ``refs(<split_by>).p`` where that is missing.

    Args:
        folder: of the data set, such as ``data/refer/refcoco``.
        split_by: who divided it.

    Raises:
        FileNotFoundError: there is neither; lists the lists that are there.
        ValueError: the file cannot be read, or a ref lacks a field; names file, ref and field.

    Source:
        Section 5.1. The pickles of the authors are read without running anything of them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     ref = {"ref_id": 7, "ann_id": 8, "image_id": 9, "split": "val", "sentences": [{"sent": "left cat"}]}
        ...     _ = Path(root, "refs(unc).json").write_text(json.dumps([ref]))
        ...     read_refs(Path(root), "unc").referents
        (Referent(ref_id=7, ann_id=8, image_id=9, category_id=None, split='val', sentences=('left cat',)),)
    """
    path = find_refs(folder, split_by)
    if path is None:
        there = sorted(file.name for file in folder.glob("refs(*"))
        raise FileNotFoundError(
            f"there is neither refs({split_by}).p nor refs({split_by}).json in {str(folder)!r}"
            + (f", but {shorten(there)}" if there else "; unpack the data set so that its lists lie there")
        )
    with _collector_paused():
        content = _read_json(path) if path.suffix == ".json" else read_plain(path)
        return Refs(path, tuple(checked_refs(content, path)))


def checked_refs(content: Any, path: Path) -> list[Referent]:
    """Take the referents out of what a list of refs holds.

    Args:
        content: what was read from it.
        path: the file, for messages.

    Raises:
        ValueError: it is no list of refs; names file, ref and field.

    Example:
        >>> checked_refs([{"ref_id": 7}], Path("refs(unc).p"))
        Traceback (most recent call last):
        ValueError: 'refs(unc).p', ref_id 7: the field 'ann_id' is missing; expected a whole number
    """
    if not isinstance(content, list):
        raise ValueError(f"{str(path)!r} must hold a list of refs, got {type(content).__name__}")
    if not content:
        raise ValueError(f"{str(path)!r} holds no refs; is it the file of the data set?")
    found = [_referent(ref, number, path) for number, ref in enumerate(content)]
    seen: set[int] = set()
    for referent in found:
        if referent.ref_id in seen:
            raise ValueError(f"{str(path)!r} has two refs with ref_id {referent.ref_id}; leave one of them out")
        seen.add(referent.ref_id)
    return found


def read_instances(path: Path, refs: Refs) -> Instances:
    """Read ``instances.json``, and check the annotations that refs use; no others are kept.

    Args:
        path: the file.
        refs: the list.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; an annotation or a picture is missing, or of another picture; a box has no area
            or is outside of its picture (one that is partly outside is kept); a segmentation marks nothing or cannot
            be read. Names file, ref_id and ann_id.

    Source:
        Section 5.1; the checks are ours.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     image = {"id": 9, "file_name": "9.jpg", "height": 4, "width": 5}
        ...     shape = {"bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
        ...     annotation = {"id": 8, "image_id": 9, "category_id": 1, **shape}
        ...     path = Path(root, "instances.json")
        ...     _ = path.write_text(json.dumps({"images": [image], "annotations": [annotation]}))
        ...     instances = read_instances(path, Refs(path, (Referent(7, 8, 9, 1, "val", ("left cat",)),)))
        >>> instances[8].bbox, instances[8].file_name
        ((1.0, 1.0, 2.0, 2.0), '9.jpg')
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; unpack the data set so that it lies there")
    with _collector_paused():
        return _instances(_read_json(path), path, refs)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of lists and dicts are made that all stay; walking through them again and again doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _instances(content: Any, path: Path, refs: Refs) -> Instances:
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise ValueError(f"{str(path)!r} must have lists 'images' and 'annotations', as COCO's files have")
    images = _by_id(content["images"], {referent.image_id for referent in refs.referents}, "images", path)
    rows = _by_id(content["annotations"], {referent.ann_id for referent in refs.referents}, "annotations", path)
    found: dict[int, Annotation] = {}
    for referent in refs.referents:
        try:
            found[referent.ann_id] = found.get(referent.ann_id) or _annotation(referent, rows, images)
            if found[referent.ann_id].image_id != referent.image_id:
                raise ValueError(
                    f"the annotation is of image_id {found[referent.ann_id].image_id}, "
                    f"the ref of image_id {referent.image_id}"
                )
        except ValueError as error:
            where = f"ref_id {referent.ref_id} of {refs.path.name}, ann_id {referent.ann_id}"
            raise ValueError(f"{str(path)!r}, {where}: {first_line(error)}") from None
    return Instances(path, found)


def truncated_box(bbox_xywh: Sequence[float]) -> tuple[int, int, int, int]:
    """A box of COCO as the official code has it, in whole pixels.

    Args:
        bbox_xywh: x, y, w, h in pixels.

    Returns:
        x1, y1, x2, y2: x and y without their fractions, and so many pixels on as w and h have without theirs, but one
        at least. Official code: none, where w or h is below 1, and the box has no area.

    Source:
        Section 5.1.

    Example:
        >>> truncated_box([10.9, 20.2, 30.8, 0.4])
        (10, 20, 40, 21)
    """
    x, y, w, h = bbox_xywh
    return int(x), int(y), int(x) + max(int(w), 1), int(y) + max(int(h), 1)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no JSON: {first_line(error)}") from None


def _referent(ref: Any, number: int, path: Path) -> Referent:
    where = f"{str(path)!r}, ref {number}"
    if not isinstance(ref, dict):
        raise ValueError(f"{where} must be a dict, got {type(ref).__name__}")
    ref_id = _field(ref, "ref_id", int, where)
    where = f"{str(path)!r}, ref_id {ref_id}"
    ann_id, image_id = (_field(ref, name, int, where) for name in ("ann_id", "image_id"))
    category = None if ref.get("category_id") is None else _field(ref, "category_id", int, where)
    sentences = _field(ref, "sentences", list, where)
    if not sentences:
        raise ValueError(f"{where}: the field 'sentences' is empty; a ref needs one at least")
    texts = []
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            raise ValueError(f"{where}: sentence {place} must be a dict, got {type(sentence).__name__}")
        texts.append(_field(sentence, "sent", str, f"{where}, sentence {place}"))
    return Referent(ref_id, ann_id, image_id, category, _field(ref, "split", str, where), tuple(texts))


_KINDS = {int: "a whole number", str: "a string", list: "a list"}


def _field(ref: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in ref:
        raise ValueError(f"{where}: the field {name!r} is missing; expected {_KINDS[kind]}")
    if type(ref[name]) is not kind:  # True is an int, too
        raise ValueError(f"{where}: the field {name!r} must be {_KINDS[kind]}, got {type(ref[name]).__name__}")
    return ref[name]


def _by_id(rows: Iterable[Any], wanted: Collection[int], name: str, path: Path) -> dict[int, dict[str, Any]]:
    """The wanted rows of a list of COCO's by their numbers."""
    found: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or type(row.get("id")) is not int:
            raise ValueError(f"{str(path)!r}: number {number} of {name!r} must be a dict with a whole number 'id'")
        if row["id"] in wanted and found.setdefault(row["id"], row) is not row:
            raise ValueError(f"{str(path)!r}: two of {name!r} have the id {row['id']}; leave one of them out")
    return found


def _annotation(referent: Referent, rows: dict[int, dict[str, Any]], images: dict[int, dict[str, Any]]) -> Annotation:
    if referent.ann_id not in rows:
        raise ValueError("there is no such annotation; is the file that of another data set?")
    if referent.image_id not in images:
        raise ValueError(f"there is no image with id {referent.image_id}; is the file that of another data set?")
    row, image = rows[referent.ann_id], images[referent.image_id]
    height, width = (_side(image.get(name), name) for name in ("height", "width"))
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name {name!r} of its image is not the name of a picture")
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError(f"file_name {name!r} of its image must lead into the folder of the pictures")
    box = _box(row.get("bbox"), height, width)
    check_segmentation(row.get("segmentation"), height, width)
    return Annotation(box, row["segmentation"], height, width, name, row.get("image_id", referent.image_id))


def _side(value: Any, name: str) -> int:
    if type(value) is not int or not 0 < value <= _LARGEST_SIDE:
        raise ValueError(f"{name} {value!r} of its image must be a whole number from 1 to {_LARGEST_SIDE}")
    return value


def _box(bbox: Any, height: int, width: int) -> tuple[float, float, float, float]:
    if not isinstance(bbox, list) or len(bbox) != 4 or any(type(number) not in (int, float) for number in bbox):
        raise ValueError(f"bbox {bbox!r} must be four numbers x, y, w, h")
    if not all(abs(number) < math.inf for number in bbox):
        raise ValueError(f"bbox {bbox} must be finite")
    x, y, w, h = map(float, bbox)
    if w <= 0 or h <= 0:
        raise ValueError(f"bbox {bbox} has no area")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(f"bbox {bbox} is outside of its picture of width {width} and height {height}")
    return x, y, w, h
