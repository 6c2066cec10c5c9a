"""RunCheckpoint: the last one is the last one, scores survive, pruning starts them afresh."""

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from toy_method import ToyCallback, ToyData, ToyMethod

from callbacks.surgery import forget_old_network
from lit_methods.checkpoint_io import read_checkpoint
from lit_methods.cli.checkpoints import RunCheckpoint, resumed_step


def fit(make_trainer, folder: Path, scores: list[float], *callbacks, epochs: int | None = None, **kwargs):
    """A fit whose ``val/score`` follows ``scores``."""
    options = {
        name: kwargs.pop(name) for name in list(kwargs) if name in ("every_n_train_steps", "save_top_k", "monitor")
    }
    checkpoint = RunCheckpoint(**{"monitor": "val/score", "mode": "max"} | options)
    checkpoint.dirpath = str(folder)
    trainer = make_trainer(
        max_epochs=epochs or len(scores), enable_checkpointing=True, callbacks=[*callbacks, checkpoint], **kwargs
    )
    trainer.fit(ToyMethod(num_classes=3, scores=scores), datamodule=ToyData())
    return checkpoint


def steps(folder: Path) -> dict[str, int]:
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


def test_last_is_the_last_one_although_an_earlier_one_is_best(make_trainer, tmp_path):
    checkpoint = fit(make_trainer, tmp_path / "c", [0.90, 0.95, 0.60, 0.80])
    assert steps(tmp_path / "c") == {"epoch=1-step=10.ckpt": 10, "previous.ckpt": 15, "last.ckpt": 20}
    assert checkpoint.best_path() == str(tmp_path / "c" / "epoch=1-step=10.ckpt")


def test_without_monitor_the_last_one_and_the_one_before_it(make_trainer, tmp_path):
    checkpoint = fit(make_trainer, tmp_path / "c", [0.9, 0.8], monitor=None)
    assert steps(tmp_path / "c") == {"last.ckpt": 10, "previous.ckpt": 5}
    assert checkpoint.best_path() == str(tmp_path / "c" / "last.ckpt")


@pytest.mark.parametrize("how", [{"val_check_interval": 2}, {"check_val_every_n_epoch": 2}, {"limit_val_batches": 0}])
def test_last_follows_every_rhythm_of_validation(make_trainer, tmp_path, how):
    fit(
        make_trainer,
        tmp_path / "c",
        [0.9, 0.8, 0.7],
        **how,
        monitor=None if "limit_val_batches" in how else "val/score",
    )
    assert steps(tmp_path / "c")["last.ckpt"] == 15


def test_last_by_steps_while_the_monitored_value_is_yet_to_come(make_trainer, tmp_path):
    """Lightning defers both until validation; a run killed before it would have nothing to go on from."""
    seen = {}

    class Watch(ToyCallback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen[trainer.global_step] = steps(tmp_path / "c").get("last.ckpt") if (tmp_path / "c").exists() else None

    fit(make_trainer, tmp_path / "c", [0.9, 0.95], Watch(), every_n_train_steps=2)
    assert [seen[step] for step in range(5)] == [None, None, 2, 2, 4]
    assert seen[5] == 5  # the end of the epoch counts as well
    best = {name for name in steps(tmp_path / "c") if name not in ("last.ckpt", "previous.ckpt")}
    assert len(best) == 1


def test_after_surgery_the_best_is_of_the_new_network_and_old_files_stay(make_trainer, tmp_path):
    """Validation 0.90, 0.95, (pruned) 0.60, 0.80: Lightning's best would be the dense network of epoch 1."""
    checkpoint = fit(make_trainer, tmp_path / "c", [0.90, 0.95, 0.60, 0.80], ToyCallback(at_epoch=2), save_top_k=1)
    best = {"epoch=1-step=10.ckpt": 10, "epoch=3-step=20.ckpt": 20}
    assert steps(tmp_path / "c") == best | {"previous.ckpt": 15, "last.ckpt": 20}
    assert checkpoint.best_path() == str(tmp_path / "c" / "epoch=3-step=20.ckpt")


def test_surgery_just_before_the_end_falls_back_to_the_last(make_trainer, tmp_path):
    checkpoint = fit(make_trainer, tmp_path / "c", [0.9, 0.8])
    forget_old_network(make_trainer(callbacks=[checkpoint], enable_checkpointing=True), LightningModule())
    assert checkpoint.best_path() == str(tmp_path / "c" / "last.ckpt")


def test_state_holds_plain_types(make_trainer, tmp_path):
    fit(make_trainer, tmp_path / "c", [0.9, 0.8])
    states = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("RunCheckpoint"))
    assert float(state["best_model_score"]) == pytest.approx(0.9)


def test_scores_survive_another_rhythm_of_saving(make_trainer, tmp_path):
    fit(make_trainer, tmp_path / "c", [0.9])
    assert (
        RunCheckpoint("val/score", "max", every_n_train_steps=3).state_key
        in (torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)["callbacks"])
    )


def test_a_best_file_that_is_gone_is_forgotten(make_trainer, tmp_path):
    fit(make_trainer, tmp_path / "c", [0.9, 0.8])
    states = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for key, state in states.items() if key.startswith("RunCheckpoint"))
    (tmp_path / "c" / "epoch=0-step=5.ckpt").unlink()
    fresh = RunCheckpoint("val/score", "max")
    fresh.dirpath = str(tmp_path / "elsewhere")
    fresh.load_state_dict(state)
    assert (fresh.best_model_path, fresh.best_k_models, fresh.kth_best_model_path) == ("", {}, "")


def test_resumed_step_counts_batches(make_trainer, tmp_path):
    fit(make_trainer, tmp_path / "c", [0.9], every_n_train_steps=3, save_top_k=-1, monitor=None)
    middle = read_checkpoint(next((tmp_path / "c").glob("*step=3.ckpt")))
    assert resumed_step(middle) == 3
    assert resumed_step(read_checkpoint(tmp_path / "c" / "last.ckpt")) == 5


def test_weights_alone_are_no_checkpoint(tmp_path):
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="is not a checkpoint of a run"):
        read_checkpoint(tmp_path / "w.ckpt")


# --- previous.ckpt ---------------------------------------------------------------------------------------------------


def test_last_is_never_missing_and_the_one_before_it_is_another_file(make_trainer, tmp_path, monkeypatch):
    last, before = tmp_path / "c" / "last.ckpt", tmp_path / "c" / "previous.ckpt"
    true, seen = Trainer.save_checkpoint, []

    def save(*args):
        seen.append((last.is_file(), before.is_file()))
        true(*args)
        if before.is_file():
            assert not os.path.samefile(last, before)

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    fit(make_trainer, last.parent, [0.9] * 4, monitor=None)
    assert seen == [(False, False), (True, False), (True, True), (True, True)]
    assert steps(last.parent) == {"last.ckpt": 20, "previous.ckpt": 15}
    assert {path.name for path in last.parent.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_a_file_system_without_links(make_trainer, tmp_path, monkeypatch):
    def link(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", link)
    fit(make_trainer, tmp_path / "c", [0.9, 0.8], monitor=None)
    assert steps(tmp_path / "c") == {"last.ckpt": 10, "previous.ckpt": 5}


def test_a_last_one_that_nobody_vouches_for_does_not_become_the_one_before(make_trainer, tmp_path):
    """A run that falls back starts from the sound file; the damaged last one must not replace it."""
    fit(make_trainer, tmp_path / "c", [0.9, 0.8], monitor=None)
    (tmp_path / "c" / "last.ckpt").write_bytes(b"damaged")

    def go_on(source: str, epochs: int):
        checkpoint = RunCheckpoint()
        checkpoint.dirpath = str(tmp_path / "c")
        trainer = make_trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=[checkpoint])
        trainer.fit(ToyMethod(num_classes=3), datamodule=ToyData(), ckpt_path=tmp_path / "c" / source)

    go_on("previous.ckpt", 2)
    assert steps(tmp_path / "c") == {"last.ckpt": 10, "previous.ckpt": 5}
    go_on("last.ckpt", 3)
    assert steps(tmp_path / "c") == {"last.ckpt": 15, "previous.ckpt": 10}


def test_a_save_that_fails_leaves_both(make_trainer, tmp_path, monkeypatch):
    fit(make_trainer, tmp_path / "c", [0.9, 0.8], monitor=None)
    checkpoint = RunCheckpoint()
    checkpoint.dirpath = str(tmp_path / "c")
    trainer = make_trainer(max_epochs=3, enable_checkpointing=True, callbacks=[checkpoint])

    def save(*_, **__):
        raise OSError("no")

    monkeypatch.setattr(trainer.strategy, "save_checkpoint", save)
    with pytest.raises(OSError, match="no"):
        trainer.fit(ToyMethod(num_classes=3), datamodule=ToyData(), ckpt_path=tmp_path / "c" / "last.ckpt")
    assert steps(tmp_path / "c") == {"last.ckpt": 10, "previous.ckpt": 5}
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"last.ckpt", "previous.ckpt"}
