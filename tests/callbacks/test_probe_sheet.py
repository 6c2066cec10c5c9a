"""ProbeSheet: which probes are shown, beside whom, and what happens where there is little to show."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks import ProbeSheet
from callbacks.probe_sheet import _chosen
from lit_methods.functional.framing import RIGHT, WRONG


class Faces:
    """Pictures of brightness 10 * index."""

    name, groups = "known", ("near", "far")

    def images(self, rows):
        return torch.from_numpy(rows).byte()[:, None, None, None].expand(-1, 3, 8, 8) * 10

    def sources(self, index):
        return (f"{index}.png",)


def rows(*entries):
    """(angle, label, group) each, as the metric keeps them."""
    angles = torch.tensor([float(angle) for angle, _, _ in entries])
    columns = [torch.tensor(column) for column in zip(*((label, group) for _, label, group in entries), strict=True)]
    return [torch.stack([angles.cos(), angles.sin()], 1), *columns, torch.arange(len(entries))]


def test_a_probe_is_beside_its_nearest_gallery_face():
    given = rows((0, 7, -1), (1.5, 8, -1), (0.2, 7, 0), (1.4, 7, 1))
    cells, table = ProbeSheet().sheet(given, Faces())
    assert [row[:3] for row in table] == [["2.png", "near", "0.png"], ["3.png", "far", "1.png"]]
    assert [row[4] for row in table] == [1, 0]
    assert table[0][3] == pytest.approx(np.cos(0.2))
    frames = [tuple(cell[0, 0].tolist()) for cell in cells]
    assert frames[1::2] == [RIGHT, WRONG]
    assert [int(cell[40, 40, 0]) for cell in cells] == [20, 0, 30, 10]


def test_of_equally_near_ones_the_first_by_index_is_shown():
    given = rows((0, 7, -1), (0, 8, -1), (0.1, 8, 0))
    given = [column[[1, 0, 2]] for column in given]
    assert ProbeSheet().sheet(given, Faces())[1][0][2] == "0.png"


def test_half_are_mistakes_where_there_are_so_many():
    right = torch.tensor([True] * 10 + [False] * 10)
    chosen = _chosen(right, 6)
    assert len(chosen) == 6
    assert sum(not right[i] for i in chosen) >= 3
    assert _chosen(torch.tensor([True] * 9), 4) == [0, 2, 4, 6]
    assert _chosen(torch.tensor([False, True]), 12) == [0, 1]


def test_a_group_that_a_limit_left_out_is_passed_over():
    cells, table = ProbeSheet().sheet(rows((0, 7, -1), (0.2, 7, 1)), Faces())
    assert len(cells) == 2
    assert table[0][1] == "far"
    assert ProbeSheet().sheet(rows((0.2, 7, 1)), Faces()) == ([], [])


def test_a_module_without_probes_is_left_alone(quick_trainer, tmp_path):
    sheet, trainer = ProbeSheet(), quick_trainer()
    sheet.on_test_epoch_end(trainer, SimpleNamespace())
    sheet.on_test_end(trainer, SimpleNamespace())
    assert not (tmp_path / "pictures").exists()


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="per_group=0 must be at least 1"):
        ProbeSheet(0)
