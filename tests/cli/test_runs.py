"""A run is a directory: what fit, validate and test leave behind, and how runs go on."""

import filecmp
import os
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from toy_method import ToyData

from tests.left_behind import metrics, read_summary
from tests.own_process import run_entry

HERE = Path(__file__).parent


def weights(path: Path) -> torch.Tensor:
    state = torch.load(path, weights_only=True)["state_dict"]
    return torch.cat([value.flatten() for value in state.values()])


def test_a_run_is_a_directory(command, tmp_path):
    answer = command("fit")
    run = answer.run_dir
    assert answer.code == 0
    assert answer.err == []
    assert run.parent == tmp_path / "runs"
    assert run.name.startswith("toy-2")
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "metrics.csv", "checkpoints", "summary.json", "card.md"}
    kept = {"last.ckpt", "previous.ckpt", "epoch=1-step=10.ckpt"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == kept
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}
    assert "LIT_METHODS_RUN_DIR" not in os.environ


def test_summary_is_flat_and_has_fit_test_parts_and_circumstances(command):
    found = read_summary(command("fit", "--seed_everything", 3).run_dir)
    assert {"train/loss", "val/score", "test/score", "toy/rate", "toy/name", "toy/keep"} <= found.keys()
    assert found["seed"] == 3
    assert found["duration_s"] > 0
    assert f"torch {torch.__version__.partition('+')[0]}" in [v.partition("+")[0] for v in found["versions"]]
    assert all(isinstance(value, float | int | str | list) for value in found.values())


def test_card_puts_the_papers_figures_beside_the_runs(command):
    run = command("fit").run_dir
    card = (run / "card.md").read_text()
    shown = f"{read_summary(run)['test/score']:.4g}"
    assert f"| `test/score` | {shown} | 0.9 |" in card
    assert "Toy et al., 2020" in card
    assert "Points on a line" in card


def test_closing_table_is_short_and_the_directory_is_the_last_line(command):
    out = command("fit", "--run_dir", "here").out
    assert Path(out[-1]) == Path("here").absolute()
    assert any(line.split()[0] == "test/score" for line in out[1:-1])
    assert not any("train/loss" in line for line in out)
    assert len(out) < 12


def test_saved_configuration_runs_the_same_again(command):
    first = command("fit", "--model.lr", 0.2).run_dir
    config = yaml.safe_load((first / "config.yaml").read_text())
    assert not {"run_dir", "ckpt_path", "config"} & config.keys()
    assert config["recipe"] == "toy"
    again = command("fit", recipe=first / "config.yaml").run_dir
    assert again.name.startswith("toy-")
    assert filecmp.cmp(first / "metrics.csv", again / "metrics.csv", shallow=False)
    assert torch.equal(weights(first / "checkpoints/last.ckpt"), weights(again / "checkpoints/last.ckpt"))


def test_two_runs_in_the_same_second_do_not_collide(command, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")
    names = [command("fit", "--trainer.max_epochs", 1).run_dir.name for _ in range(3)]
    assert names == ["toy-20260101-000000", "toy-20260101-000000-2", "toy-20260101-000000-3"]


def test_a_directory_that_is_not_empty_is_refused(command, tmp_path):
    Path(tmp_path, "full").mkdir()
    Path(tmp_path, "full", "thesis.tex").write_text("")
    answer = command("fit", "--run_dir", "full")
    assert answer.code == 2
    assert answer.err == [
        "error: run_dir='full' is not empty; name another, or go on with --ckpt_path last or a checkpoint in it"
    ]
    run = command("fit").run_dir
    assert command("fit", "--run_dir", "full", "--ckpt_path", run / "checkpoints/last.ckpt").code == 2
    Path(tmp_path, "empty").mkdir()
    assert command("fit", "--run_dir", "empty").code == 0


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["epoch", "step"])
def test_a_run_that_goes_on_in_place_equals_one_that_was_never_stopped(command, at):
    """At the end of an epoch; and in its middle, with the rows of the abandoned rest cut off."""
    every = ["--checkpoint.every_n_train_steps", 7, "--checkpoint.save_top_k", -1, "--checkpoint.monitor", "null"]
    every = every if at == "step" else []
    whole = command("fit", "--trainer.max_epochs", 4, *every).run_dir
    part = command("fit", "--trainer.max_epochs", 2, *every, "--run_dir", "part").run_dir
    ckpt = "last" if at == "epoch" else next(part.glob("checkpoints/*step=7.ckpt"))
    assert metrics(part)[-1]["test/score"]  # the test of the shorter run: cut off as well
    answer = command("fit", "--trainer.max_epochs", 4, *every, "--run_dir", "part", "--ckpt_path", ckpt)
    assert answer.code == 0
    assert all(line.startswith("ckpt_path: the last one is ") for line in answer.err)
    assert answer.run_dir == part
    assert (part / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert torch.equal(weights(part / "checkpoints/last.ckpt"), weights(whole / "checkpoints/last.ckpt"))


def test_a_stopped_run_goes_on_where_it_stood(command):
    whole = command("fit", "--trainer.max_epochs", 3, "--run_dir", "whole").run_dir
    with pytest.raises(ValueError, match="fault"):  # in batch 3 of the first epoch
        command("fit", "--trainer.max_epochs", 3, "--run_dir", "part", "--model.fail_at", 3,
                "--checkpoint.every_n_train_steps", 2)  # fmt: skip
    assert len(metrics(Path("part"))) == 3  # every row that was logged is on disk
    answer = command("fit", "--trainer.max_epochs", 3, "--run_dir", "part", "--ckpt_path", "last",
                     "--checkpoint.every_n_train_steps", 2)  # fmt: skip
    steps = [row["step"] for row in metrics(answer.run_dir) if row["train/loss"]]
    assert steps == [row["step"] for row in metrics(whole) if row["train/loss"]]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_best_score_and_top_k_are_kept(command, elsewhere):
    words = ["--model.scores", "[0.9, 0.95, 0.6, 0.8]"]
    first = command("fit", "--trainer.max_epochs", 2, *words, "--run_dir", "first").run_dir
    best = first / "checkpoints" / "epoch=1-step=10.ckpt"
    target = "second" if elsewhere else "first"
    answer = command("fit", "--trainer.max_epochs", 4, *words, "--run_dir", target,
                     "--ckpt_path", "first/checkpoints/last.ckpt")  # fmt: skip
    assert answer.code == 0
    assert best.is_file()
    ours = {path.name for path in (Path(target) / "checkpoints").iterdir()}
    assert ours == {"last.ckpt", "previous.ckpt"} | (set() if elsewhere else {best.name})
    assert read_summary(answer.run_dir)["test/weight"] == pytest.approx(float(_first_layer(best)))


def _first_layer(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)["state_dict"]["layer.weight"].sum()


def test_a_moved_run_finds_its_best_checkpoint(command):
    words = ["--model.scores", "[0.9, 0.5, 0.6]"]
    command("fit", "--trainer.max_epochs", 2, *words, "--run_dir", "old")
    Path("old").rename("new")
    command("fit", "--trainer.max_epochs", 3, *words, "--run_dir", "new", "--ckpt_path", "last")
    best = Path("new/checkpoints/epoch=0-step=5.ckpt")
    assert read_summary(Path("new"))["test/weight"] == pytest.approx(float(_first_layer(best)))


def test_last_is_the_newest_checkpoint_of_this_recipe(command, tmp_path):
    other = Path(tmp_path, "other.yaml")
    other.write_text((HERE / "toy.yaml").read_text())
    mine = command("fit").run_dir
    later = command("fit", recipe=other).run_dir
    os.utime(mine / "checkpoints/last.ckpt", (time.time() - 100,) * 2)
    answer = command("fit", "--ckpt_path", "last", "--trainer.max_epochs", 3)
    assert answer.code == 0
    assert answer.run_dir not in (mine, later)
    assert metrics(answer.run_dir)[0]["step"] == "10"  # continued, not from scratch
    nothing = command("fit", "--ckpt_path", "last", "--run_dir", "empty")
    assert nothing.code == 2
    assert nothing.err == ["error: ckpt_path='last': no checkpoint in empty/checkpoints"]
    command("fit", "--run_dir", "outside", "--trainer.max_epochs", 1)
    assert command("fit", "--ckpt_path", "last", "--run_dir", "outside").run_dir == Path("outside").absolute()


def test_a_changed_learning_rate_is_honoured_and_said(command):
    command("fit", "--run_dir", "a")
    answer = command("fit", "--run_dir", "a", "--ckpt_path", "last", "--trainer.max_epochs", 3, "--model.lr", 0.9)
    assert answer.err[0] == "ckpt_path: the last one is a/checkpoints/last.ckpt"
    assert answer.err[1:] == ["learning rate: 0.1 in the checkpoint, 0.9 now; going on with 0.9"]
    state = torch.load("a/checkpoints/last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.9 / 8)  # halved three times


def test_best_means_best_since_the_network_changed_its_shape(command):
    """Lightning's best would be epoch 1, from before."""
    run = command("fit", "--trainer.max_epochs", 4, "--model.scores", "[0.9, 0.95, 0.8, 0.6]",
                  "--trainer.callbacks.at_epoch", 2).run_dir  # fmt: skip
    assert {path.name for path in (run / "checkpoints").iterdir()} >= {"epoch=1-step=10.ckpt", "epoch=2-step=15.ckpt"}
    assert read_summary(run)["test/weight"] == pytest.approx(
        float(_first_layer(run / "checkpoints/epoch=2-step=15.ckpt"))
    )


def test_where_nothing_is_monitored_the_last_one_is_tested(command):
    run = command("fit", "--checkpoint.monitor", "null").run_dir
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert read_summary(run)["test/weight"] == pytest.approx(float(_first_layer(run / "checkpoints/last.ckpt")))


# --- the other entries ----------------------------------------------------------------------------------------------


def test_test_and_validate_build_the_module_from_the_checkpoint(command):
    fitted = command("fit", "--model.hidden", 6).run_dir
    expected = read_summary(fitted)
    tested = command("test", "--ckpt_path", "last")  # the recipe alone would build another network
    assert tested.code == 0
    assert read_summary(tested.run_dir)["test/score"] == pytest.approx(expected["test/score"])
    assert tested.run_dir != fitted
    assert not (tested.run_dir / "checkpoints").exists()
    validated = command("validate", "--ckpt_path", fitted / "checkpoints/last.ckpt", "--run_dir", "v")
    assert validated.run_dir == Path("v").absolute()
    assert read_summary(validated.run_dir)["val/score"] == pytest.approx(expected["val/score"])


def test_an_explicit_argument_beats_the_checkpoint(command):
    fitted = command("fit", "--model.lr", 0.2).run_dir / "checkpoints/last.ckpt"
    assert read_summary(command("test", "--ckpt_path", fitted).run_dir)["toy/rate"] == 0.2
    assert read_summary(command("test", "--ckpt_path", fitted, "--model.lr", 0.3).run_dir)["toy/rate"] == 0.3


def test_without_a_checkpoint_the_recipes_own_model_is_tested(command):
    answer = command("test", "--model.lr", 0.4)
    assert answer.code == 0
    assert read_summary(answer.run_dir)["toy/rate"] == 0.4


def test_an_evaluation_in_the_directory_of_its_run_adds_to_it(command):
    fitted = command("fit", "--run_dir", "a").run_dir
    before, lines = read_summary(fitted), len(metrics(fitted))
    config = (fitted / "config.yaml").read_text()
    assert command("validate", "--run_dir", "a", "--ckpt_path", "last").code == 0
    after = read_summary(fitted)
    assert after.keys() == before.keys()
    assert after["duration_s"] == before["duration_s"]
    assert len(metrics(fitted)) == lines + 1
    assert metrics(fitted)[-1]["step"] == "10"  # where the checkpoint stands, so that a resumed run cuts it off
    assert (fitted / "config.yaml").read_text() == config


def test_a_class_outside_this_package_is_not_imported_from_a_checkpoint(command):
    ckpt = command("fit").run_dir / "checkpoints/last.ckpt"
    state = torch.load(ckpt, weights_only=True)
    state["lit_methods"] = {"class": "antigravity.Anything"}
    torch.save(state, ckpt)
    answer = command("test", "--ckpt_path", ckpt, recipe=None)
    assert answer.code == 2
    assert len(answer.err) == 1
    assert "antigravity" in answer.err[0]
    assert "antigravity" not in sys.modules
    assert command("test", "--ckpt_path", ckpt).code == 0  # the recipe names the class


# --- the grammar ----------------------------------------------------------------------------------------------------


def test_callbacks_plus_appends(command):
    found = command("fit", "--trainer.callbacks+=ToyCallback", "--trainer.callbacks.keep", 0.7).run_dir
    config = yaml.safe_load((found / "config.yaml").read_text())
    assert [c["init_args"]["keep"] for c in config["trainer"]["callbacks"]] == [0.5, 0.7]


def test_a_later_configuration_adds_to_the_recipe(command, tmp_path):
    Path(tmp_path, "more.yaml").write_text("model: {init_args: {lr: 0.3}}")
    found = command("fit", "--config", "more.yaml", "--trainer.max_epochs", 1)
    assert read_summary(found.run_dir)["toy/rate"] == 0.3
    assert found.run_dir.name.startswith("toy-")


def test_a_recipe_by_its_short_name(command, monkeypatch):
    monkeypatch.setattr("lit_methods.cli.find_recipes", lambda: {"points": HERE / "toy.yaml"})
    answer = command("fit", "points", "--trainer.max_epochs", 1, recipe=None)
    assert answer.code == 0
    assert answer.run_dir.name.startswith("toy-")
    assert command("fit", "point", recipe=None).err == [
        "error: no recipe 'point'; did you mean points? (--list shows all; a file of your own goes after --config)"
    ]


def test_print_config_prints_and_runs_nothing(command):
    answer = command("fit", "--model.lr", 0.3, "--print_config")
    assert answer.code == 0
    assert yaml.safe_load("\n".join(answer.out))["model"]["init_args"]["lr"] == 0.3
    assert not Path("runs").exists()


def test_print_config_of_what_differs(command):
    answer = command("fit", "--print_config=skip_default")
    assert yaml.safe_load("\n".join(answer.out))["trainer"]["max_epochs"] == 2
    assert not any("gradient_clip" in line for line in answer.out)


def test_help_on_a_class_by_its_short_name(command):
    answer = command("fit", "--model.help", "ToyMethod")
    assert answer.code == 0
    assert any("learning rate" in line for line in answer.out)


def test_fast_dev_run_keeps_no_checkpoint_and_does_not_test(command):
    answer = command("fit", "--trainer.fast_dev_run", "true")
    assert answer.code == 0
    assert not (answer.run_dir / "checkpoints").exists()
    assert "test/score" not in read_summary(answer.run_dir)


def test_without_checkpoints_the_weights_in_memory_are_tested(command):
    answer = command("fit", "--trainer.enable_checkpointing", "false")
    assert answer.code == 0
    assert "test/score" in read_summary(answer.run_dir)


# --- what the module is told about the data -------------------------------------------------------------------------


def test_the_module_learns_from_the_data_what_nothing_gives_explicitly(command):
    def hparams(*words: object) -> dict:
        path = command("fit", "--trainer.max_epochs", 1, *words).run_dir / "checkpoints/last.ckpt"
        return torch.load(path, weights_only=True)["hyper_parameters"]

    linked = hparams()
    assert linked["num_classes"] == ToyData.num_classes == 3
    assert linked["mean"] == [0.5, 0.5]
    assert linked["class_names"] == ["below", "above", "beside"]  # set in the datamodule's __init__
    assert "std" not in linked  # the class does not take it
    given = hparams("--model.num_classes", 4, "--model.init_args.mean", "[0.1]")
    assert (given["num_classes"], given["mean"]) == (4, [0.1])


# --- several processes ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_share_one_new_directory(tmp_path):
    words = ["--config", str(HERE / "toy.yaml"), "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = run_entry("fit", *words, folder=tmp_path, environment=os.environ | {"PYTHONPATH": str(HERE)})
    assert done.returncode == 0, done.stderr
    (run,) = Path(tmp_path, "runs").iterdir()
    assert done.stdout.splitlines()[-1] == str(run)
    assert "test/score" in read_summary(run)
    assert (run / "checkpoints/last.ckpt").is_file()
