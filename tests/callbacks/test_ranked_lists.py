"""RankedLists: which queries are shown, what was found for them, and what happens where there is little to show."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import RankedLists
from callbacks.ranked_lists import _chosen, _in_order
from datamodules import Market1501DataModule
from lit_methods import SourceReID
from lit_methods.ad_cluster.pictures import PLAIN, RIGHT, WRONG
from lit_methods.metrics.reid import ReIDRanking
from tests.left_behind import read_rows

SIZE = {"height": 32, "width": 16, "num_workers": 0, "batch_size": 16}
STEP = 64  # from one picture of a list to the next
MODULE = SimpleNamespace(test_ranking=ReIDRanking())


@pytest.fixture
def make(tmp_path):
    """Rows for queries and a gallery of (feature, pid, camid) each, with a picture of brightness 10 * place."""

    def rows(queries, gallery):
        files = []
        for name, part in (("q", queries), ("g", gallery)):
            files.append([tmp_path / f"{name}{i}.png" for i in range(len(part))])
            for i, path in enumerate(files[-1]):
                Image.new("RGB", (16, 32), (10 * i,) * 3).save(path)
        whole = [*queries, *gallery]
        return {
            "features": torch.tensor([[float(feature)] for feature, _, _ in whole]).reshape(-1, 1),
            "pid": torch.tensor([pid for _, pid, _ in whole]),
            "camid": torch.tensor([camid for _, _, camid in whole]),
            "index": torch.tensor([*range(len(queries)), *range(len(gallery))]),
            "query": torch.tensor([True] * len(queries) + [False] * len(gallery)),
        }, *files

    return rows


def cells(picture, columns):
    """Brightness and frame of every picture of a list."""
    parts = [picture[2:120, 2 + STEP * i : STEP + STEP * i] for i in range(columns)]
    return [(int(part[50, 30, 0]), tuple(part[0, 0].tolist())) for part in parts]


def test_a_list_has_the_nearest_pictures_that_the_evaluation_counts(make):
    gallery = [
        (0.1, 7, 0),  # the same person, the same camera: left out
        (0.2, -1, 1),  # junk: left out
        (0.3, 0, 1),  # a distractor
        (0.4, 7, 1),
        (0.5, 8, 0),  # another person before the same camera stays
        (0.6, 7, 2),
        (0.7, 9, 1),
    ]
    pictures, table = RankedLists(num_queries=3, top=4).lists(*make([(0.0, 7, 0)], gallery), MODULE)
    (picture,) = pictures
    assert cells(picture, 5) == [(0, PLAIN), (20, WRONG), (30, RIGHT), (40, WRONG), (50, RIGHT)]
    assert [row[:5] + row[6:] for row in table] == [
        ["q0.png", 1, "g2.png", 0, 2, 0],
        ["q0.png", 2, "g3.png", 7, 2, 1],
        ["q0.png", 3, "g4.png", 8, 1, 0],
        ["q0.png", 4, "g5.png", 7, 3, 1],
    ]
    assert [row[5] for row in table] == pytest.approx([0.3, 0.4, 0.5, 0.6])


def test_a_gallery_with_fewer_pictures_gives_shorter_lists(make):
    given = make([(0, 7, 0), (0, 8, 0)], [(1, 7, 1), (2, 8, 0), (3, 8, 1)])
    pictures, table = RankedLists(num_queries=2, top=10).lists(*given, MODULE)
    by_query = {name: [row[2] for row in table if row[0] == name] for name in ("q0.png", "q1.png")}
    assert by_query == {"q0.png": ["g0.png", "g1.png", "g2.png"], "q1.png": ["g0.png", "g2.png"]}
    assert {picture.shape[1] for picture in pictures} == {2 + 4 * STEP, 2 + 3 * STEP}


@pytest.mark.parametrize(
    ("queries", "gallery"),
    [
        ([(0, 7, 0)], [(1, 7, 0), (2, 8, 1)]),  # no query has a match
        ([(0, 7, 0)], [(1, -1, 1)]),  # junk alone
        ([], [(1, 7, 1)]),
        ([(0, 7, 0)], []),
    ],
)
def test_where_nothing_can_be_found_nothing_is_shown(make, queries, gallery):
    assert RankedLists().lists(*make(queries, gallery), MODULE) == ([], [])


def test_of_many_queries_some_are_looked_at(make, monkeypatch):
    monkeypatch.setattr("callbacks.ranked_lists.MOST", 2)
    rows, query_files, gallery_files = make([(i, 1, 0) for i in range(6)], [(0, 1, 1), (9, 2, 1)])
    _, table = RankedLists(num_queries=6, top=1).lists(rows, query_files, gallery_files, MODULE)
    assert [row[0] for row in table] == ["q0.png", "q3.png"]


def test_half_of_the_queries_are_the_worst_served_and_the_others_spread():
    count = 12
    same = torch.eye(count, dtype=torch.bool)
    distances = torch.full((count, count), 5.0).tril(-1) + torch.eye(count) * 9  # query i: i others are nearer
    distances = distances.masked_fill(~same & (distances == 0), 10.0)
    same[11] = False  # the last one has no match
    assert _chosen(distances, same, 4) == [10, 9, 0, 4]
    assert _chosen(distances, same, 1) == [0]
    assert sorted(_chosen(distances, same, 40)) == list(range(11))
    assert len(_chosen(distances, same, 7)) == 7


def test_a_match_by_the_same_camera_serves_nobody():
    same = torch.tensor([[True, True, False], [True, False, False]])
    distances = torch.tensor([[torch.inf, 3.0, 1.0], [torch.inf, 1.0, 2.0]])
    assert _chosen(distances, same, 8) == [0]


def test_the_order_in_which_rows_came_and_repeats_do_not_matter(make):
    rows, *files = make([(0, 7, 0), (5, 8, 0)], [(1, 7, 1), (2, 8, 1), (3, 9, 1)])
    shuffled = {name: values[torch.tensor([4, 1, 3, 0, 2, 1, 4])] for name, values in rows.items()}
    ours, expected = _in_order(shuffled), _in_order(rows)
    assert len(ours["pid"]) == 5
    assert all(torch.equal(ours[name], values) for name, values in expected.items())
    assert RankedLists().lists(ours, *files, MODULE)[1] == RankedLists().lists(rows, *files, MODULE)[1]


# -- in a test --------------------------------------------------------------------------------------------------------


def module():
    return SourceReID("tiny", {"width": 4}, num_classes=8, input_size=[3, 32, 16])


@pytest.fixture
def data(market1501_root):
    return Market1501DataModule(str(market1501_root), **SIZE)


@pytest.mark.parametrize("limit", [1.0, 2])
def test_a_test_leaves_a_picture_and_a_table_with_files(make_trainer, data, tmp_path, limit):
    trainer = make_trainer(callbacks=[RankedLists(num_queries=4, top=3)], limit_test_batches=limit)
    trainer.test(module(), datamodule=data, verbose=False)
    rows = read_rows(tmp_path / "tables/test_ranked_lists.csv")
    names = {path.name: "q" for path in data.query_files} | {path.name: "g" for path in data.gallery_files}
    queries = {row["query"] for row in rows}
    assert len(queries) == 4
    assert {names[name] for name in queries} == {"q"}
    assert {names[row["gallery"]] for row in rows} == {"g"}
    for row in rows:
        person, camera = row["query"][:4], row["query"][6]
        assert (row["gallery"][:4], row["gallery"][6]) != (person, camera)
        assert row["right"] == str(int(row["gallery"][:4] == person))
        assert int(row["pid"]) == int(row["gallery"][:4])
        assert row["camid"] == row["gallery"][6]
    for query in queries:
        distances = [float(row["distance"]) for row in rows if row["query"] == query]
        assert distances == sorted(distances)
        assert len(distances) == 3
    picture = np.asarray(Image.open(tmp_path / "pictures/test_ranked_lists.png"))
    assert picture.shape == (2 + 4 * (118 + 14 + 4 + 2), 2 + 2 + 4 * STEP + 2, 3)


def test_a_test_keeps_nothing_afterwards(make_trainer, data):
    callback = RankedLists(num_queries=1, top=1)
    tested = module()
    make_trainer(callbacks=[callback]).test(tested, datamodule=data, verbose=False)
    assert callback._rows is None
    assert tested.test_ranking.features == []


@pytest.mark.parametrize("what", ["validate", "predict", "test without a datamodule"])
def test_other_runs_show_nothing(make_trainer, data, tmp_path, what):
    trainer = make_trainer(callbacks=[RankedLists()])
    if what == "validate":
        trainer.validate(module(), datamodule=data, verbose=False)
    else:
        data.setup("test")
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
        loader = DataLoader(batches, batch_size=None)
        if what == "predict":
            trainer.predict(module(), dataloaders=loader)
        else:
            trainer.test(module(), dataloaders=loader, verbose=False)
    assert not (tmp_path / "pictures").exists()
    assert not (tmp_path / "tables").exists()


def test_numbers_below_one_are_refused():
    for wrong in ({"num_queries": 0}, {"top": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            RankedLists(**wrong)
