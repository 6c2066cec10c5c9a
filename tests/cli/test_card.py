"""The small parts of what a run leaves behind."""

import json

import torch

from lit_methods.cli import card
from lit_methods.cli.quiet import quiet


class Part:
    def summary(self):
        return {"prune/macs": torch.tensor(12), "test/score": 0.5, "prune/layers": ["a", "b"]}


def test_what_parts_add_wins_over_what_was_logged():
    assert card.gather({"test/score": torch.tensor(0.25), "val/loss": float("nan")}, [Part(), object(), None]) == {
        "test/score": 0.5, "val/loss": "nan", "prune/macs": 12, "prune/layers": ["a", "b"]
    }  # fmt: skip


def test_summary_is_strict_json(tmp_path):
    card.write_summary(tmp_path, card.gather({"val/loss": float("inf")}, []))
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: 1 / 0)


def test_a_figure_that_the_run_lacks_keeps_its_row(tmp_path):
    card.write_card(tmp_path, "hrank", {}, {"prune/macs": "1.2e8 | half", "table": "3"}, {"test/top1": 0.93215})
    text = (tmp_path / "card.md").read_text()
    assert "| `prune/macs` |  | 1.2e8 \\| half |" in text
    assert "| `test/top1` | 0.9321 |  |" in text or "| `test/top1` | 0.9322 |  |" in text
    assert "- paper, table: 3" in text


def test_table_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    card.print_table("hrank, test", {"test/top1": 0.5, "train/loss": 0.1, "toy/name": "x"}, "test")
    out = capsys.readouterr().out
    assert "test/top1" in out
    assert "train/loss" not in out


def test_quiet_restores_levels():
    import logging

    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with quiet():
        pass
    assert logger.level == before


def test_figures_of_the_dense_network_stand_beside_those_of_the_pruned_one(capsys):
    card.print_table(
        "hrank, test", {"test/top1": 0.5, "test/dense_top1": 0.75, "prune/rate": 2, "duration_s": 3}, "test"
    )
    _title, header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["value", "dense"]
    assert [row.split() for row in rows] == [["test/top1", "0.5", "0.75"], ["prune/rate", "2"], ["duration_s", "3"]]
    card.print_table("resnet20, test", {"test/top1": 0.5, "duration_s": 3}, "test")
    assert capsys.readouterr().out.splitlines()[1].split() == ["value"]


def test_card_shows_pictures_and_tables(tmp_path):
    for name in ("pictures/prune_ranks.png", "tables/prune_kept.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    card.write_card(tmp_path, "hrank", {}, {}, {"test/top1": 0.5})
    text = (tmp_path / "card.md").read_text()
    assert "![prune_ranks](pictures/prune_ranks.png)" in text
    assert "[prune_kept](tables/prune_kept.csv)" in text
