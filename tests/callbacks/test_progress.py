from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import Progress

from callbacks import progress as module


def test_items_pass_through_and_files_stay_silent(make_trainer, capfd):
    assert list(module.progress(make_trainer(enable_progress_bar=True), range(3), "ranks")) == [0, 1, 2]
    assert capfd.readouterr().out == ""


def test_a_bar_on_a_terminal_also_inside_another(make_trainer, monkeypatch, capfd):
    monkeypatch.setattr(module, "Console", lambda: Console(force_terminal=True, width=80))
    trainer = make_trainer(enable_progress_bar=True, callbacks=[ProgressBar()])
    with Progress(console=Console(force_terminal=True)) as outer:  # as Lightning's own bar in the middle of an epoch
        outer.add_task("epoch", total=2)
        assert list(module.progress(trainer, iter("ab"), "ranks", total=2)) == ["a", "b"]
    assert "ranks" in capfd.readouterr().out
    assert list(module.progress(make_trainer(), range(2), "quiet")) == [0, 1]  # the Trainer has no bar
    assert "quiet" not in capfd.readouterr().out
