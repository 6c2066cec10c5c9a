"""What an offline run at W&B has written, read back from its own file; wandb has no reader of its own any more.

The file is a header of 7 bytes, then LevelDB log blocks of 32 KiB: each part of a record follows its checksum, length
and kind (1 whole, 2 first, 3 middle, 4 last).
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER, WHOLE, LAST = 32768, 7, 1, 4


@dataclass
class Record:
    """One ``offline-run-*`` folder.

    Args:
        folder: the folder itself.
        run_id: of the run; a run that was resumed has one per part.
        project: of the run.
        config: what ``wandb.config`` holds.
        summary: what ``run.summary`` holds.
        history: every logged row, media as dictionaries with ``_type``.
        media: the files of every key in the order they were logged; each of them exists and is not empty.
        axes: the x axis of metrics, by pattern.
        exit_code: ``None`` where the run was not ended.
    """

    folder: Path
    run_id: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    media: dict[str, list[Path]] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def at(self, key: str) -> dict[int, Any]:
        """The values of a key by the step on the axis of the scalars."""
        return {row["trainer/global_step"]: row[key] for row in self.history if key in row}


def read_record(run_dir: Path) -> Record:
    """The only record of a run's directory."""
    (record,) = read_records(run_dir)
    return record


def read_records(run_dir: Path) -> list[Record]:
    """All records of a run's directory, in the order in which they were begun."""
    files = [(_started(path), path) for path in run_dir.glob("wandb/offline-run-*/run-*.wandb")]
    return [_read(path) for _, path in sorted(files)]


def _started(path: Path) -> float:
    run = next(message.run for message in _messages(path) if message.HasField("run"))
    return run.start_time.seconds + run.start_time.nanos / 1e9


def _read(path: Path) -> Record:
    record = Record(path.parent)
    for message in _messages(path):
        kind = message.WhichOneof("record_type")
        if kind == "run":
            record.run_id, record.project = message.run.run_id, message.run.project
            _update(record.config, message.run.config.update)
        elif kind == "config":
            _update(record.config, message.config.update)
        elif kind == "summary":
            _update(record.summary, message.summary.update)
        elif kind == "history":
            record.history.append(_update({}, message.history.item))
        elif kind == "metric":
            record.axes[message.metric.glob_name or message.metric.name] = message.metric.step_metric
        elif kind == "exit":
            record.exit_code = message.exit.exit_code
    for row in record.history:
        for key, value in row.items():
            if isinstance(value, dict) and ("filenames" in value or "path" in value):  # pictures, or one file
                files = [path.parent / "files" / name for name in value.get("filenames") or [value["path"]]]
                assert all(file.stat().st_size for file in files), files
                record.media.setdefault(key, []).extend(files)
    return record


def _update(values: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        *outer, key = item.nested_key or [item.key]
        inner = values
        for name in outer:
            if not isinstance(inner.get(name), dict):  # a number before: what came last counts
                inner[name] = {}
            inner = inner[name]
        inner[key] = json.loads(item.value_json)
    return values


def _messages(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record as Message

    data, position, parts = path.read_bytes(), HEADER, b""
    assert data[:4] == b":W&B", data[:HEADER]
    while position < len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # too small for another part
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        part = data[position + HEADER : position + HEADER + length]
        assert len(part) == length, f"{path} ends in the middle of a record"
        assert zlib.crc32(bytes([kind]) + part) == checksum, f"{path} is damaged at byte {position}"
        position, parts = position + HEADER + length, parts + part
        if kind in (WHOLE, LAST):
            message = Message()
            message.ParseFromString(parts)
            parts = b""
            yield message
