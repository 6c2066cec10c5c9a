"""Checkpoints on disk: whole or not at all, checked before they are read."""

import errno
import io
import os
import random
import re
import resource
import signal
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods import checkpoint_io
from lit_methods.backbones.weights import read_weights
from lit_methods.checkpoint_io import CheckpointError, DiskFullError, SafeCheckpointIO, read_checkpoint, replacing

IO = SafeCheckpointIO()


def content(step: int = 1, size: int = 1000) -> dict:
    return {"state_dict": {"layer.weight": torch.full((size,), float(step))}, "loops": {}, "global_step": step}


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "run" / "last.ckpt"
    IO.save_checkpoint(content(), path)
    return path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flipped(data: bytes, generator: random.Random, bits: int = 1) -> bytes:
    changed = bytearray(data)
    for _ in range(bits):
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


# --- writing --------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded_and_nothing_else_lies_there(saved):
    assert files(saved.parent) == {"last.ckpt"}
    assert_close(IO.load_checkpoint(saved), content(), rtol=0, atol=0)
    IO.save_checkpoint(content(2), saved)
    assert read_checkpoint(saved)["global_step"] == 2


def test_the_temporary_directory_plays_no_part(saved, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/does/not/exist")
    IO.save_checkpoint(content(2), saved)
    assert read_checkpoint(saved)["global_step"] == 2


class FullDisk(io.RawIOBase):
    """A file on a disk with ``room`` bytes left."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def fileno(self) -> int:
        return self.file.fileno()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["first byte", "in the middle", "fsync", "replace"])
def test_a_full_disk_leaves_the_older_file_and_says_how_much_is_free(saved, monkeypatch, where):
    """Drill D1, injected."""
    if where in ("fsync", "replace"):
        monkeypatch.setattr(checkpoint_io.os, where, full)
    else:
        true_open, room = Path.open, 0 if where == "first byte" else 3000

        def open_(path, mode="r", *args, **kwargs):
            file = true_open(path, mode, *args, **kwargs)
            return FullDisk(file, room) if mode == "wb" else file

        monkeypatch.setattr(Path, "open", open_)
    with pytest.raises(DiskFullError) as caught:
        IO.save_checkpoint(content(2), saved)
    assert caught.value.errno == errno.ENOSPC
    assert re.fullmatch(
        rf"{saved} was not written: No space left on device \([\d.]+ [kMGT]?B free there\); the one before is whole",
        str(caught.value),
    )
    monkeypatch.undo()
    assert files(saved.parent) == {"last.ckpt"}
    assert read_checkpoint(saved)["global_step"] == 1


def test_a_limit_of_the_system_on_the_size_of_files(saved):
    """Drill D1 with a real refusal by the kernel."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match="File too large"):
            IO.save_checkpoint(content(2, size=1_000_000), saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(saved.parent) == {"last.ckpt"}
    assert read_checkpoint(saved)["global_step"] == 1


def test_other_errors_stay_what_they_are_and_leave_nothing(saved, monkeypatch):
    with pytest.raises(Exception, match="pickle"):
        IO.save_checkpoint({"run": lambda: None}, saved)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        IO.save_checkpoint(content(2), saved)
    assert files(saved.parent) == {"last.ckpt"}


def test_what_a_killed_process_left_is_removed_but_not_what_is_being_written(saved):
    left = saved.with_name(".last.ckpt.1.lit_methods.part")
    left.write_bytes(b"half")
    foreign = saved.with_name(".something.part")
    foreign.write_bytes(b"")
    with replacing(saved.with_name("other.ckpt")) as file:
        assert not left.exists()
        IO.save_checkpoint(content(2), saved)
        file.write(b"x")
        assert len(list(saved.parent.glob(".other.ckpt.*"))) == 1
    assert files(saved.parent) == {"last.ckpt", "other.ckpt", ".something.part"}


def test_only_local_files(saved):
    with pytest.raises(ValueError, match="local files"):
        IO.save_checkpoint(content(), "s3://bucket/a.ckpt")
    with pytest.raises(ValueError, match="only local files"):
        IO.load_checkpoint("https://example.org/a.ckpt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        IO.load_checkpoint(saved.with_name("none.ckpt"))


def test_a_directory_is_named_as_one_with_what_may_be_meant(tmp_path):
    with pytest.raises(CheckpointError, match=r"ckpt_path='.*' is a directory; name a file$"):
        read_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for age, name in enumerate(("last.ckpt", "epoch=1.ckpt")):
        (tmp_path / "checkpoints" / name).touch()
        os.utime(tmp_path / "checkpoints" / name, (1000 - age, 1000 - age))
    cure = f"such as {tmp_path}/checkpoints/last.ckpt, or give --run_dir {tmp_path} --ckpt_path last"
    for folder in (tmp_path, tmp_path / "checkpoints"):
        with pytest.raises(CheckpointError, match=f"is a directory; name a file, {re.escape(cure)}$"):
            IO.load_checkpoint(folder)


def test_removing_what_is_gone(saved):
    for _ in range(2):
        IO.remove_checkpoint(saved)
    assert files(saved.parent) == set()


@pytest.mark.slow
def test_killed_at_random_points_every_checkpoint_loads(tmp_path):
    """Drill D2: 50 processes that save one checkpoint after the other, each killed at some moment."""
    generator = random.Random(0)
    seen = set()
    for _ in range(50):
        child = os.fork()
        if child == 0:
            try:
                for step in range(1, 10_000):
                    IO.save_checkpoint(content(step, size=500_000), tmp_path / f"{step % 3}.ckpt")
            finally:
                os._exit(1)
        time.sleep(generator.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen |= {path.suffix for path in tmp_path.iterdir()}
        for path in tmp_path.glob("*.ckpt"):
            checkpoint = read_checkpoint(path)
            assert_close(checkpoint, content(checkpoint["global_step"], size=500_000), rtol=0, atol=0)
    assert seen == {".ckpt", ".part"}  # some were killed in the middle of a file
    IO.save_checkpoint(content(), tmp_path / "0.ckpt")
    assert not list(tmp_path.glob(".*"))


# --- reading --------------------------------------------------------------------------------------------------------


def test_code_in_a_file_is_refused_even_if_the_caller_would_run_it(tmp_path):
    torch.save(content() | {"run": os.system}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*asks for \w+\.system, but only tensors and plain values"):
        IO.load_checkpoint(tmp_path / "a.ckpt", weights_only=False)


def test_tensors_go_where_they_are_sent(saved):
    assert IO.load_checkpoint(saved, map_location="meta")["state_dict"]["layer.weight"].is_meta


def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path):
    """Drill D8: ``torch.load`` alone returns about half of these files as other numbers."""
    path = tmp_path / "whole.ckpt"
    IO.save_checkpoint(content(), path)
    whole, generator, refusals = path.read_bytes(), random.Random(0), {}
    for index in range(300):
        damaged = tmp_path / f"{index}.ckpt"
        damaged.write_bytes(flipped(whole, generator))
        for read in (IO.load_checkpoint, read_checkpoint):
            try:
                assert_close(read(damaged), content(), rtol=0, atol=0)
            except CheckpointError as ex:
                refusals[damaged, read] = str(ex)
    assert all(str(path) in line and "\n" not in line for (path, _), line in refusals.items())
    assert len(refusals) > 400  # what is left are bits in paddings and in dates


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_file_that_is_cut_off(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    for read in (IO.load_checkpoint, read_checkpoint):
        with pytest.raises(CheckpointError, match=rf"'{saved}' is not a checkpoint of a run: damaged, cut off"):
            read(saved)


def test_a_sound_file_is_checked_once_and_again_when_it_changes(saved, monkeypatch):
    checks = []
    check = zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: checks.append(1) or check(self))
    for _ in range(3):
        read_checkpoint(saved)
        IO.load_checkpoint(saved)
    assert len(checks) == 1
    IO.save_checkpoint(content(2), saved)
    read_checkpoint(saved)
    assert len(checks) == 2


def test_the_old_format_of_torch_is_taken_for_weights_alone(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"state_dict": {"a": torch.ones(3)}, "loops": {}}, path, _use_new_zipfile_serialization=False)
    tensors, _ = read_weights(str(path))
    assert torch.equal(tensors["a"], torch.ones(3))
    with pytest.raises(CheckpointError, match="no archive"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100), bytes(range(256))])
def test_files_of_another_kind_are_one_line_without_torchs_advice(tmp_path, data):
    """Its advice is to load them unsafely."""
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"cannot be read as weights: damaged, or not written by torch\.save"
    ) as caught:
        read_weights(str(tmp_path / "w.pth"))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["w.pth", "w.npz", "w.ckpt"])
def test_damaged_weights_are_an_error(tmp_path, name):
    path = tmp_path / name
    if name == "w.npz":
        np.savez(path, a=np.arange(1000.0))
    else:
        torch.save({"a": torch.arange(1000.0)}, path)
    assert torch.equal(read_weights(str(path))[0]["a"].float(), torch.arange(1000.0))
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 1  # inside the numbers
    for data in (b"", whole[: len(whole) // 2], whole[: int(0.99 * len(whole))], bytes(middle)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"base_checkpoint='{path}' cannot be read as weights: .+") as caught:
            read_weights(str(path))
        assert "\n" not in str(caught.value)
