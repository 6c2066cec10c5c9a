"""``predict``: the user's pictures in, ``predictions.csv`` and pictures out; one bad file stops nothing."""

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from PIL import Image
from torch import Tensor

from lit_methods.functional.pictures import read_rgb
from lit_methods.inference import find_pictures, prepare_inputs

_BATCH_SIZE = 32


@dataclass
class Outcome:
    """What a prediction run did.

    Args:
        rows: those of ``predictions.csv``, a sample each, unless the method has ``rows`` of its own.
        unreadable: files that could not be read.
        samples: how many there were.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    samples: int = 0


def predict(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule | None,
    paths: Sequence[str] | None,
    options: dict[str, Any],
    run_dir: Path,
) -> Outcome:
    """Predict for the user's files, or for the datamodule's prediction split without any.

    Args:
        trainer: runs ``predict_step``, on one device.
        module: a method; its own ``prepare_inputs`` is used where it has one, and its ``draw``.
        datamodule: used without ``paths``.
        paths: files and folders.
        options: the method's own options, for its ``prepare_inputs``.
        run_dir: where ``predictions.csv``, the drawn ``pictures/`` and a folder for each key of a result that is a
            picture are written, and ``predictions.json`` where the method has a ``record`` of each result.

    Raises:
        ValueError: more than one device, no ``paths`` and nothing to take in their place, or no picture in them.
        FileNotFoundError: a path does not exist.
    """
    if trainer.world_size > 1:
        raise ValueError(f"devices={trainer.world_size} processes would write one file; predict with 1")
    outcome = Outcome()
    if not paths:
        if datamodule is None:
            raise ValueError("input: missing; give --input PATH..., or a recipe with data")
        if not is_overridden("predict_dataloader", datamodule):
            raise ValueError(f"input: missing; give --input PATH...: {type(datamodule).__name__} has none of its own")
        results = _flat(trainer.predict(module, datamodule=datamodule))
        outcome.rows, outcome.samples = _write(run_dir, [], results, module), len(results)
        return outcome
    files: list[Any]
    if (sift := getattr(module, "sift_inputs", None)) is not None:
        files, faults = sift(paths, **options)
        for reason in faults.values():
            _complain(reason)
        outcome.unreadable = list(faults)
    else:
        missing = [Path(path) for path in paths if not Path(path).exists()]
        files, outcome.unreadable = _sift([*missing, *find_pictures([p for p in paths if Path(p).exists()] or paths)])
    own = getattr(module, "prepare_inputs", None)
    batches: Iterable[Any]
    if own is not None:
        batches = own(files, **options)
    else:
        batches = prepare_inputs(files, input_size=module.hparams.get("input_size"), batch_size=_BATCH_SIZE)
    try:
        results = _flat(trainer.predict(module, dataloaders=batches)) if files else []
    finally:
        if hasattr(batches, "close"):
            batches.close()
    own_names = bool(results) and "file" in results[0]  # e.g. the first of two pictures that were compared
    paired = files if len(files) == len(results) and not own_names else []  # nor one result per frame of a video
    outcome.rows, outcome.samples = _write(run_dir, paired, results, module), len(results)
    if paired and hasattr(module, "draw"):
        _draw(module, files, results, run_dir / "pictures")
    return outcome


def _sift(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Readable and unreadable files; each is decoded once here, so that no batch breaks later."""
    readable, unreadable = [], []
    for path in files:
        try:
            read_rgb(path)
            readable.append(path)
        except ValueError as ex:
            _complain(ex)
            unreadable.append(path)
    return readable, unreadable


def _complain(reason: object) -> None:
    print(f"error: {' '.join(str(reason).split())}", file=sys.stderr)


def _flat(batches: Any) -> list[dict[str, Any]]:
    return [result for batch in batches or [] for result in batch]


def columns(result: dict[str, Any]) -> dict[str, Any]:
    """One result as CSV cells: a list becomes numbered columns, entry by entry, so that what belongs together stands
    side by side.

    Example:
        >>> columns({"labels": [3, 1], "names": ["cat", "dog"], "scores": [0.9, 0.1], "size": 2})
        {'label_1': 3, 'name_1': 'cat', 'score_1': 0.9, 'label_2': 1, 'name_2': 'dog', 'score_2': 0.1, 'size': 2}
    """
    values = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in result.items()}
    lists = {key: value for key, value in values.items() if isinstance(value, list | tuple)}
    cells: dict[str, Any] = {}
    for index in range(max(map(len, lists.values()), default=0)):
        for key, value in lists.items():
            if index < len(value):
                cells[f"{_singular(key)}_{index + 1}"] = _cell(value[index])
    return cells | {key: _cell(value) for key, value in values.items() if key not in lists}


def _singular(key: str) -> str:
    return key[:-2] if key.endswith("xes") else key[:-1] if key.endswith("s") else key


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _write(
    run_dir: Path, files: list[Path], results: list[dict[str, Any]], module: LightningModule
) -> list[dict[str, Any]]:
    """Write ``predictions.csv``, ``predictions.json`` and the pictures in the results, and give the rows.

    ``files`` is empty where a result has no file of its own.
    """
    stems = _stems(files) if files else [f"{row:0{len(str(len(results) - 1))}}" for row in range(len(results))]
    names = [str(path) for path in files] or [result.get("file", "") for result in results]
    own_rows, own_record = (getattr(module, offer, None) for offer in ("rows", "record"))
    rows: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for name, stem, result in zip(names, stems, results, strict=True):
        saved = {key: _save(run_dir, f"{key}/{stem}.png", value) for key, value in result.items() if _is_picture(value)}
        told = [columns(result | saved)] if own_rows is None else own_rows(result | saved)
        rows += [{"file": name} | row for row in told]
        if own_record is not None:
            records.append({"file": name} | own_record(result | saved))
    header = list(dict.fromkeys(name for row in rows for name in row)) or ["file"]
    with (run_dir / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if own_record is not None:
        text = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)  # a line for each
        (run_dir / "predictions.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    return rows


def _is_picture(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 3 and value.shape[0] == 3


def _save(run_dir: Path, name: str, picture: Tensor) -> str:
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(run_dir / name)
    return name


def _draw(module: LightningModule, files: list[Path], results: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path, stem, result in zip(files, _stems(files), results, strict=True):
        image = np.asarray(read_rgb(path))
        Image.fromarray(module.draw(image, result)).save(folder / f"{stem}.png")  # type: ignore[operator]


def _stems(files: list[Path]) -> list[str]:
    """What the pictures of each file are called; two folders may hold files of the same name."""
    stems: dict[str, str] = {}  # by what a disk that ignores case makes of them
    for path in files:
        stem, number = path.stem, 1
        while stem.lower() in stems:
            number += 1
            stem = f"{path.stem}-{number}"
        stems[stem.lower()] = stem
    return list(stems.values())
