"""ClusterReport and what it draws, the sheet of translations, features over loaders, and DirectTransfer's limits."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from matplotlib.figure import Figure
from PIL import Image

from callbacks import ClusterReport, DirectTransfer, PseudoLabelClustering, features as features_module
from callbacks.cluster_figures import COLOURS, OTHERS, feature_map_figure, iterations_figure
from callbacks.cluster_report import _rows
from callbacks.features import gathered_features
from callbacks.translation_figures import NARROWEST, translation_sheet
from datamodules import Market1501DataModule
from lit_methods import ADCluster
from lit_methods.ad_cluster.camera_translation import CameraTranslation
from lit_methods.ad_cluster.pictures import PLAIN, RIGHT, WRONG
from tests.left_behind import read_rows

ROW, COLUMN = 136, 72  # of the sheet: a framed picture and the gap beside it
SIZE = {"height": 32, "width": 16, "num_workers": 0, "batch_size": 32}
CLUSTERS = {"train_on": "clusters", "p": 2, "k": 3, "generated_per_id": 1}


class People:
    """As much of a data module as a report needs; picture i is all of brightness i."""

    def __init__(self, truth, camids=None, size=(32, 16)):
        self.truth, self.size = truth, size
        self.train_camids = torch.tensor(camids if camids is not None else [0] * 12)

    def true_train_ids(self):
        return None if self.truth is None else torch.tensor(self.truth)

    def thumbnail(self, index):
        return np.full((*self.size, 3), index, np.uint8)


def read_sheet(sheet):
    """Number and frame of every picture, row by row."""
    rows = []
    for top in range(2, sheet.shape[0], ROW):
        cells = [sheet[top : top + 134, left : left + 70] for left in range(2, sheet.shape[1], COLUMN)]
        rows.append([(int(c[60, 30, 0]), tuple(c[0, 0].tolist())) for c in cells if (c != 255).any()])
    return rows


# -- the sheet and the table of the clusters --------------------------------------------------------------------------

LABELS = torch.tensor([2, 0, 0, 1, 1, 1, -1, 1, 2, 2, 2, -1])
TRUTH = [4, 5, 9, 7, 7, 8, 5, 7, 6, 6, 5, 9]


def test_the_largest_clusters_come_first_and_outliers_last():
    sheet = ClusterReport(num_clusters=2, per_cluster=5).sheet(LABELS, People(TRUTH))
    assert sheet.shape == (2 + 3 * ROW, 2 + 5 * COLUMN, 3)
    assert read_sheet(sheet) == [
        [(3, RIGHT), (4, RIGHT), (5, WRONG), (7, RIGHT)],  # of two that are equally large the first
        [(0, WRONG), (8, RIGHT), (9, RIGHT), (10, WRONG)],
        [(6, PLAIN), (11, PLAIN)],
    ]


def test_pictures_of_a_large_cluster_are_spread_over_it():
    (row,) = read_sheet(ClusterReport(per_cluster=3).sheet(torch.zeros(9).long(), People([4] * 9)))
    assert [number for number, _ in row] == [0, 3, 6]


def test_without_truth_all_frames_are_grey_and_the_table_has_gaps():
    sheet = ClusterReport(per_cluster=2).sheet(LABELS, People(None))
    assert {frame for row in read_sheet(sheet) for _, frame in row} == {PLAIN}
    assert _rows(LABELS, People(None)) == [[0, 2, "1", "", ""], [1, 4, "1", "", ""], [2, 4, "1", "", ""]]


def test_without_clusters_there_are_outliers_and_without_outliers_no_row_for_them():
    report = ClusterReport(per_cluster=3)
    assert read_sheet(report.sheet(torch.full((2,), -1), People([1, 1]))) == [[(0, PLAIN), (1, PLAIN)]]
    assert read_sheet(report.sheet(torch.zeros(2).long(), People([1, 1]))) == [[(0, RIGHT), (1, RIGHT)]]
    assert _rows(torch.full((2,), -1), People([1, 1])) == []


def test_the_table_counts_persons_and_cameras_of_each_cluster():
    camids = [2, 0, 0, 0, 1, 2, 0, 1, 0, 0, 0, 0]
    assert _rows(LABELS, People(TRUTH, camids)) == [[0, 2, "1", 5, 1], [1, 4, "1 2 3", 7, 3], [2, 4, "1 3", 6, 2]]


# -- figures ----------------------------------------------------------------------------------------------------------


def points(figure):
    return np.concatenate([marks.get_offsets() for marks in figure.axes[0].collections])


def test_equal_features_give_equal_maps():
    features = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    first, second = (points(feature_map_figure(features, np.arange(12), np.arange(12) % 2)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first.std(0) > 0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ["five", "all equal", "all zero", "nearly equal", "huge"])
def test_every_map_has_finite_points(case):
    noise = np.random.default_rng(0).normal(size=(9, 8))
    features = {
        "five": noise[:5],
        "all equal": np.full((9, 8), 3.3),
        "all zero": np.zeros((9, 8)),
        "nearly equal": 1e-20 * noise,
        "huge": 1e25 * noise,
    }[case].astype(np.float32)
    where = points(feature_map_figure(features, np.zeros(len(features)), np.zeros(len(features), np.int64)))
    assert where.shape == (len(features), 2)
    assert np.isfinite(where).all()
    assert (where.std(0) > 0).all()


def test_the_most_frequent_ones_have_colours_that_are_not_the_others_grey(monkeypatch):
    monkeypatch.setattr("callbacks.cluster_figures.TSNE", lambda **_: SimpleNamespace(fit_transform=lambda x: x[:, :2]))
    most = len(COLOURS)
    labels = np.array([-1, *range(most + 2), *range(2, most + 2)])  # 0 and 1 come once, the others twice
    figure = feature_map_figure(np.random.default_rng(0).normal(size=(len(labels), 4)), labels, 0 * labels, "clusters")
    colours = [tuple(colour) for colour in figure.axes[0].collections[0].get_facecolors().tolist()]
    assert [labels[i] for i, colour in enumerate(colours) if colour == OTHERS] == [-1, 0, 1]
    assert len(set(colours)) == most + 1
    assert min(max(colour[:3]) - min(colour[:3]) for colour in COLOURS) > 0.1  # no greys
    assert figure.axes[0].get_title().endswith(f"colours: {most} most frequent clusters")


def test_iterations_without_purity_leave_it_empty():
    row = {"iteration": 1, "clusters": 0, "outliers": 1.0, "eps": 0.25, "purity": None}
    figure = iterations_figure([row, row | {"iteration": 2, "clusters": 40, "outliers": 0.5}])
    lines = {axes.get_title(): [line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes}
    assert lines == {
        "clusters": [[[1, 0], [2, 40]]],
        "outliers, share": [[[1, 1], [2, 0.5]]],
        "eps": [[[1, 0.25], [2, 0.25]]],
        "purity": [],
    }
    assert figure.axes[0].get_ylim()[1] > 40  # the highest point is inside
    assert figure.axes[1].get_ylim() == figure.axes[3].get_ylim()
    iterations_figure([])


# -- in a fit ---------------------------------------------------------------------------------------------------------


def data_of(root, **changes):
    return Market1501DataModule(str(root), **CLUSTERS | SIZE | changes)


@pytest.fixture
def fit(market1501_root, make_trainer):
    def run(*callbacks, epochs=2, data=None, lr=1e-3, **trainer):
        module = ADCluster("tiny", {"width": 4}, input_size=[3, 32, 16], lr=lr)
        quick = {"limit_val_batches": 0, "limit_train_batches": 1, "reload_dataloaders_every_n_epochs": 1}
        made = make_trainer(callbacks=list(callbacks), max_epochs=epochs, **quick | trainer)
        made.fit(module, datamodule=data or data_of(market1501_root))
        return module, made

    return run


def clustering(**changes):
    return PseudoLabelClustering(**{"every_n_epochs": 1, "rho": 0.02, "k1": 8, "k2": 3} | changes)


@pytest.fixture
def maps(monkeypatch):
    """What the maps were asked for; t-SNE itself is tested above."""
    seen = []
    monkeypatch.setattr(
        "callbacks.cluster_report.feature_map_figure", lambda *given: seen.append(given) or Figure((1, 1))
    )
    return seen


@pytest.mark.parametrize("blind", [False, True])
def test_a_fit_leaves_pictures_and_a_table_whether_or_not_persons_are_known(fit, maps, monkeypatch, tmp_path, blind):
    if blind:
        monkeypatch.setattr(Market1501DataModule, "true_train_ids", lambda self: None)
        monkeypatch.setattr("callbacks.cluster_report.iterations_figure", lambda history: Figure((1, 1)))  # faster
    callback, report = clustering(), ClusterReport(num_clusters=2, per_cluster=3, num_points=20)
    _, trainer = fit(callback, report)
    sheet = np.asarray(Image.open(tmp_path / "pictures/cluster_sheet.png"))
    assert np.array_equal(sheet, report.sheet(callback.labels, trainer.datamodule))
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {f"cluster_{name}.png" for name in ("sheet", "iterations", "map_before", "map_after")}
    rows = read_rows(tmp_path / "tables/cluster_clusters.csv")
    assert sum(int(row["size"]) for row in rows) == int((callback.labels >= 0).sum())
    assert {row["most_frequent_id"] == "" for row in rows} == {blind}
    assert [given[3] for given in maps] == ["clusters" if blind else "persons"] * 2
    assert [len(given[0]) for given in maps] == [20, 20]
    assert not np.array_equal(maps[0][0], maps[1][0])  # of the same pictures, before and after
    assert np.array_equal(maps[0][2], maps[1][2])


def test_no_map_is_drawn_of_fewer_than_five_pictures_or_of_numbers_that_are_not_finite(maps, tmp_path, make_trainer):
    trainer = make_trainer()
    trainer.datamodule = People([0] * 9)
    broken = torch.zeros(9, 4)
    for features, expected in ((broken[:4], 0), (broken, 9), (broken.index_fill(0, torch.arange(3), torch.nan), 6)):
        maps.clear()
        ClusterReport()._map(trainer, "cluster/map", features, torch.zeros(9).long())
        assert [len(given[0]) for given in maps] == [expected] * (expected > 0)
    ClusterReport()._map(trainer, "cluster/map", broken.fill_(torch.inf), torch.zeros(9).long())
    assert len(maps) == 1


def test_without_the_clustering_nothing_is_drawn(make_trainer, tmp_path):
    trainer = make_trainer(callbacks=[ClusterReport()])
    ClusterReport().on_train_end(trainer, torch.nn.Module())
    assert not (tmp_path / "pictures").exists()


def test_sizes_below_one_are_refused():
    for name in ("num_clusters", "per_cluster", "num_points"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            ClusterReport(**{name: 0})


# -- features of a whole loader ---------------------------------------------------------------------------------------


class Ask(Callback):
    """Runs ``question(trainer, module)`` after the first batch of a fit."""

    def __init__(self, question):
        self.question, self.answer = question, None

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.answer = self.question(trainer, pl_module)


class Reversed:
    """Batches in the wrong order, as several processes would have them; ``left`` of them are left out."""

    def __init__(self, loader, left=0):
        self.dataset, self.batches = loader.dataset, list(loader)[::-1][left:]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def test_features_are_those_of_evaluation_row_by_index_and_leave_the_module_as_it_was(fit):
    def question(trainer, module):
        loader = trainer.datamodule.cluster_dataloader()
        module.train()
        module.model.network[0].eval()  # a mode of its own
        before = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
        with torch.autocast("cpu", torch.bfloat16):
            found = gathered_features(trainer, module, Reversed(loader), "features")
        after = module.state_dict(), [part.training for part in module.modules()]
        assert all(torch.equal(after[0][name], value) for name, value in before[0].items())
        assert after[1] == before[1]
        assert not found.requires_grad
        with torch.no_grad():
            batches = [trainer.datamodule.on_after_batch_transfer(batch, 0) for batch in loader]
            expected = torch.cat([module.eval()(batch["image"]) for batch in batches])
        module.train()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        return True

    ask = Ask(question)
    fit(clustering(), ask, epochs=1)
    assert ask.answer


@pytest.mark.parametrize("left", [0, 1], ids=["the last pictures", "the first and the last pictures"])
def test_a_loader_that_leaves_pictures_out_is_noticed(fit, left):
    def question(trainer, module):
        loader = Reversed(trainer.datamodule.cluster_dataloader(), left=1)
        if left:
            loader.batches = loader.batches[:-1]
        with pytest.raises(RuntimeError, match=r"features: \d+ rows are not those of the indices 0 to 71"):
            gathered_features(trainer, module, loader, "features")
        return True

    ask = Ask(question)
    fit(clustering(), ask, epochs=1)
    assert ask.answer


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_features_are_float32_or_better(fit, precision):
    seen = []

    class Look(PseudoLabelClustering):
        def cluster(self, features, source=None):
            seen.append(features)
            return super().cluster(features, source)

    direct = DirectTransfer()
    fit(Look(1, rho=0.02, k1=8, k2=3), direct, epochs=1, precision=precision)
    (found,) = seen
    assert found.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    assert not torch.equal(found, found.bfloat16().to(found.dtype))  # not rounded on the way
    assert 0 < direct.summary()["test/mAP_direct"] < 1


def test_rows_of_all_processes_are_put_together(fit, monkeypatch):
    def question(trainer, module):
        loader, shares = trainer.datamodule.cluster_dataloader(), []
        whole = gathered_features(trainer, module, loader, "features")
        for rank in range(2):  # each process with every other batch
            share = Reversed(loader)
            share.batches = share.batches[rank::2]
            monkeypatch.setattr(features_module, "gather_objects", lambda mine: shares.append(mine) or [mine])
            with pytest.raises(RuntimeError, match="rows are not those"):
                gathered_features(trainer, module, share, "features")
        monkeypatch.setattr(features_module, "gather_objects", lambda mine: shares)
        return torch.equal(gathered_features(trainer, module, loader, "features"), whole)

    ask = Ask(question)
    fit(clustering(), ask, epochs=1)
    assert ask.answer


# -- direct transfer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "batches"), [(0, 0), (1, 1), (0.5, 2), (0.1, 0), (1.0, 5), (9, 5)])
def test_direct_transfer_keeps_to_the_limit_on_test_batches(fit, monkeypatch, market1501_root, limit, batches):
    seen = []
    keep = ADCluster.update_ranking
    monkeypatch.setattr(
        ADCluster, "update_ranking", lambda self, ranking, batch: seen.append(1) or keep(self, ranking, batch)
    )
    direct, data = DirectTransfer(), data_of(market1501_root, batch_size=15)
    fit(clustering(), direct, epochs=1, data=data, limit_test_batches=limit)
    assert len(data.test_dataloader()) == 5
    assert len(seen) == batches
    assert (direct.summary() != {}) is (batches > 0)


def test_too_few_test_batches_for_a_figure_end_no_fit(fit, market1501_root):
    direct = DirectTransfer()
    with pytest.warns(UserWarning, match="direct transfer is not measured: .*needs both"):
        _, trainer = fit(
            clustering(), direct, epochs=1, data=data_of(market1501_root, batch_size=1), limit_test_batches=1
        )
    assert direct.summary() == {}
    assert trainer.global_step == 1


# -- the sheet of translations ----------------------------------------------------------------------------------------


def sheet_of(camids, shown, num_cameras=3, size=(32, 16)):
    translation = CameraTranslation(
        num_cameras, *size, generator_width=4, num_blocks=1, discriminator_width=4, num_layers=3
    )
    sheet = translation_sheet(translation, People(None, camids, size), torch.device("cpu"), shown)
    height, width = size[0] * max(1, -(-NARROWEST // size[1])) + 16, max(size[1], NARROWEST) + 2
    rows, columns = (sheet.shape[0] - 2) // height, (sheet.shape[1] - 2) // width
    assert sheet.shape == (2 + rows * height, 2 + columns * width, 3)
    assert columns == 1 + num_cameras
    return translation, [int(sheet[2 + row * height, 2, 0]) for row in range(rows)], sheet


@pytest.mark.parametrize(
    ("camids", "shown", "expected"),
    [
        ([0, 0, 0, 1, 2, 2], 6, [0, 1, 2, 0, 2, 0]),  # of camera 2 there is one picture alone
        ([0, 0, 0, 1, 2, 2], 4, [0, 1, 2, 0]),
        ([1, 1, 1], 2, [1, 1]),
        ([2], 6, [2]),
    ],
)
def test_as_many_cameras_as_possible_are_on_the_sheet(camids, shown, expected):
    chosen = sheet_of(camids, shown)[1]
    assert [camids[index] for index in chosen] == expected
    assert len(set(chosen)) == len(chosen)
    assert sheet_of(camids, shown)[1] == chosen  # the same ones every time


def test_the_sheet_shows_what_the_generator_makes_of_each_picture():
    translation, _, sheet = sheet_of([0, 1], 2, size=(64, 128))
    image = torch.full((1, 3, 64, 128), 1 / 255)
    made = translation.eval().translate(image, torch.tensor([2]))
    cell = sheet[2 + 80 : 2 + 80 + 64, 2 + 3 * 130 : 2 + 3 * 130 + 128]  # the second picture as camera 3
    assert np.array_equal(cell, (made[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
