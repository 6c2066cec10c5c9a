import csv
import json
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image

from callbacks import RunReport
from lit_methods.cli.loggers import RunWandbLogger
from tests.wandb_record import read_record


class Taking(DummyLogger):
    """A logger with Lightning's methods for media."""

    def __init__(self):
        super().__init__()
        self.images, self.tables = [], []

    def log_image(self, key, images, step):
        self.images.append((key, images, step))

    def log_table(self, key, columns, data, step):
        self.tables.append((key, columns, data, step))


class Wandb(WandbLogger):
    """W&B's logger without W&B."""

    class Run:
        id, project, entity = "abc", "mine", ""
        log = define_metric = None

        def __init__(self):
            self.summary = {}

    def __init__(self):
        super().__init__(experiment=self.Run())
        self.logged = []

    def log_metrics(self, metrics, step=None):
        self.logged.append((metrics, step))


class Board(TensorBoardLogger):
    """TensorBoard's logger without TensorBoard: notes the calls to its writer."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs))

    @property
    def experiment(self):
        return self


def picture():
    return np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def test_files_and_loggers_get_the_same(make_trainer, tmp_path):
    logger = Taking()
    trainer = make_trainer(logger=logger, callbacks=[RunReport(dpi=50)])
    trainer.fit_loop.epoch_loop._batches_that_stepped = 7
    report = RunReport.of(trainer)
    assert report.dpi == 50
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    path = report.figure(trainer, "prune/kept", figure)
    assert path == tmp_path / "pictures" / "prune_kept.png"
    assert Image.open(path).width > 50
    assert (np.asarray(Image.open(report.picture(trainer, "val/grid", picture()))) == picture()).all()
    path = report.table(trainer, "prune/table", ["layer", "kept"], [["conv, first", 4], ["b", ""]])
    assert list(csv.reader(path.open())) == [["layer", "kept"], ["conv, first", "4"], ["b", ""]]
    assert [(key, step) for key, _, step in logger.images] == [("prune/kept", 7), ("val/grid", 7)]
    # W&B refuses a text in a column of numbers; nothing is a missing value
    assert logger.tables == [("prune/table", ["layer", "kept"], [["conv, first", 4], ["b", None]], 7)]


def test_other_processes_write_nothing(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", property(lambda self: False))
    RunReport().table(trainer, "a/b", ["c"], [[1]])
    RunReport().histogram(trainer, "a/b", [1.0])
    assert RunReport().film(trainer, "a/b", []) == tmp_path / "pictures" / "a_b.gif"
    assert not (tmp_path / "tables").exists()
    assert not (tmp_path / "pictures").exists()


def test_a_histogram_counts_every_value_once(make_trainer):
    trainer = make_trainer()
    values = torch.tensor([[0.0, 1.0, 1.0], [2.0, torch.nan, torch.inf]], requires_grad=True)
    path = RunReport().histogram(trainer, "w", {"one": values, "none": np.array([]), "same": [5, 5]})
    header, *rows = csv.reader(path.open())
    assert header == ["name", "from", "to", "count"]
    bins = [[float(cell) for cell in row[1:]] for row in rows if row[0] == "one"]
    *finite, lost = bins
    assert np.isnan(lost[:2]).all()
    assert lost[2] == 2
    counts, edges = np.histogram([0, 1, 1, 2], len(finite))
    assert [row[2] for row in finite] == counts.tolist()
    np.testing.assert_allclose([row[0] for row in finite], edges[:-1])
    np.testing.assert_allclose([row[1] for row in finite], edges[1:])
    assert sum(int(row[3]) for row in rows if row[0] == "none") == 0
    assert sum(int(row[3]) for row in rows if row[0] == "same") == 2
    single = RunReport().histogram(trainer, "single", torch.ones(2, dtype=torch.bfloat16))
    assert {row["name"] for row in csv.DictReader(single.open())} == {""}


@pytest.mark.parametrize("layers", [2, 32, 33, 109])
def test_wandb_gets_histograms_of_at_most_32_layers(make_trainer, layers):
    logger = Wandb()
    trainer = make_trainer(logger=logger)
    trainer.fit_loop.epoch_loop._batches_that_stepped = 3
    path = RunReport().histogram(trainer, "rank", {f"conv{i}": np.arange(4.0) + i for i in range(layers)})
    ((logged, step),) = logger.logged
    assert step == 3
    assert min(layers, 16) <= len(logged) <= 32
    assert list(logged)[:1] == ["rank/conv0"]
    assert sum(logged["rank/conv0"].histogram) == 4
    assert (logged["rank/conv0"].bins[0], logged["rank/conv0"].bins[-1]) == (0, 3)
    assert len({row["name"] for row in csv.DictReader(path.open())}) == layers


def test_tensorboard_gets_what_it_can_take(make_trainer):
    logger = Board()
    trainer = make_trainer()
    trainer._loggers = [logger]
    report = RunReport()
    report.picture(trainer, "grid", picture())
    report.table(trainer, "kept", ["layer", "n"], [["a", 3], ["b", ""]])
    report.histogram(trainer, "w", [1.0, 2.0, 2.0])
    image, text, histogram = logger.calls
    assert (image[0], image[1], image[3], image[4]) == ("add_image", "grid", 0, {"dataformats": "HWC"})
    assert (image[2] == picture()).all()
    assert text == ("add_text", "kept", "| layer | n |\n| --- | --- |\n| a | 3 |\n| b |  |", 0, {})
    assert histogram[:2] == ("add_histogram", "w")
    counts, _ = np.histogram(histogram[2], histogram[4]["bins"])
    assert (counts[0], counts[-1]) == (1, 2)


def test_a_logger_that_fails_is_warned_about_once_and_the_others_go_on(make_trainer):
    class Failing(Taking):
        def log_image(self, key, images, step):
            raise RuntimeError("no space")

    failing, taking = Failing(), Taking()
    trainer = make_trainer(logger=[failing, taking])
    report = RunReport()
    with pytest.warns(UserWarning, match="Failing did not take grid: RuntimeError: no space") as said:
        report.picture(trainer, "grid", picture())
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.picture(trainer, "other", picture())
    assert [key for key, *_ in taking.images] == ["grid", "other"]


def test_wandb_is_told_where_the_checkpoints_are(make_trainer, tmp_path):
    best, every = ModelCheckpoint(monitor="val/top1"), ModelCheckpoint()
    best.best_model_path, best.last_model_path = "best.ckpt", "last.ckpt"
    every.best_model_path = "every.ckpt"  # without monitor it is only the newest
    logger = Wandb()
    trainer = make_trainer(logger=[logger, Taking()], callbacks=[every, best], enable_checkpointing=True)
    RunReport().on_fit_end(trainer, None)
    assert logger.experiment.summary == {"checkpoint/last": "last.ckpt", "checkpoint/best": "best.ckpt"}


def test_checkpoints_name_the_run_and_only_its_own_directory_keeps_the_name(make_trainer, tmp_path):
    report = RunReport()
    trainer = make_trainer(logger=Wandb())
    report.setup(trainer, None, "fit")
    state = report.state_dict()
    assert state == {"wandb": {"id": "abc", "project": "mine"}}
    trainer = make_trainer()
    for folder, kept in [(tmp_path / "checkpoints", state), (tmp_path.parent / "other", {})]:
        report = RunReport()
        report.setup(trainer, None, "fit")
        assert report.state_dict() == {}
        trainer._checkpoint_connector._ckpt_path = str(folder / "last.ckpt")
        report.on_load_checkpoint(trainer, None, {"callbacks": {report.state_key: state}})
        assert report.state_dict() == kept


# -- films ------------------------------------------------------------------------------------------------------------


def frames_of(path):
    """What a viewer shows: the frames as RGB, their times in ms, and how often all is repeated (0 is for ever)."""
    with Image.open(path) as film:
        shown, times = [], []
        for number in range(film.n_frames):
            film.seek(number)
            shown.append(np.asarray(film.convert("RGB")))
            times.append(film.info["duration"])
        return np.stack(shown), times, film.info["loop"]


def test_a_film_in_grey_is_kept_as_it_is(make_trainer, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (5, 24, 31, 1), dtype=np.uint8)
    path = RunReport().film(make_trainer(), "test/walk", np.repeat(grey, 3, axis=3))
    assert path == tmp_path / "pictures" / "test_walk.gif"
    shown, times, loop = frames_of(path)
    assert len(np.unique(grey)) == 256
    assert (shown == grey).all()
    assert times == [100, 100, 100, 100, 1000]
    assert loop == 0


def test_a_picture_that_stays_stays_as_long(make_trainer):
    shown, times, _ = frames_of(RunReport().film(make_trainer(), "walk", [picture(), picture(), 255 - picture()]))
    assert (shown == [picture(), 255 - picture()]).all()
    assert times == [200, 1000]


def test_a_film_in_colour_keeps_its_colours_and_what_does_not_move(make_trainer):
    height = width = 48
    y, x = np.mgrid[:height, :width] / height
    still = np.stack([255 * x, 255 * y, 255 * (1 - x)], -1)  # a smooth picture, far more than 256 colours
    frames = [still.astype(np.uint8) for _ in range(6)]
    for number, frame in enumerate(frames):
        frame[4 * number : 4 * number + 4, :6] = [255, 0, 0]  # a small red square falls
    shown, times, _ = frames_of(RunReport().film(make_trainer(), "walk", frames, fps=25))
    assert times == [40] * 5 + [1000]
    assert (shown[:, :, 6:] == shown[0, :, 6:]).all()
    error = np.abs(shown.astype(int) - np.stack(frames))
    assert error.mean() < 8
    for number in range(6):
        assert error[number, 4 * number : 4 * number + 4, :6].max() < 16


def test_films_that_are_none(make_trainer):
    trainer, frame = make_trainer(), picture()
    for wrong, found in [
        ([], "got none"),
        (np.zeros((2, 4, 5, 3)), r"got float64 \(4, 5, 3\)"),
        (frame, r"got uint8 \(5, 3\)"),
        ([frame, frame[1:]], r"got uint8 \(3, 5, 3\), uint8 \(4, 5, 3\)"),
    ]:
        with pytest.raises(ValueError, match=r"frames must be RGB \(T, H, W, 3\) uint8.*" + found):
            RunReport().film(trainer, "walk", wrong)
    for fps in (0, 51):
        with pytest.raises(ValueError, match=f"fps must be between 1 and 50 .*, got {fps}"):
            RunReport().film(trainer, "walk", [frame], fps=fps)


def test_only_wandb_gets_a_film(make_trainer):
    taking, board = Taking(), Board()
    trainer = make_trainer(logger=[taking])
    trainer._loggers.append(board)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunReport().film(trainer, "walk", [picture()])
    assert (taking.images, board.calls) == ([], [])


@pytest.fixture
def offline(make_trainer, tmp_path, monkeypatch):
    """A trainer at its fourth step, and its logger, whose record stays in the folder ``run``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = RunWandbLogger(tmp_path / "run", {}, offline=True, run={})
    (tmp_path / "run").mkdir()
    trainer = make_trainer(logger=logger)
    trainer.fit_loop.epoch_loop._batches_that_stepped = 3
    return trainer, logger


def test_the_offline_record_of_wandb_holds_a_film(offline, tmp_path):
    trainer, logger = offline
    path = RunReport().film(trainer, "test/walk", np.stack([picture(), 255 - picture()]))
    logger.close()
    record = read_record(tmp_path / "run")
    assert list(record.at("test/walk")) == [3]
    (film,) = record.media["test/walk"]
    assert film.suffix == ".gif"
    assert film.read_bytes() == path.read_bytes()


# -- overlays ---------------------------------------------------------------------------------------------------------


def overlay_of(trainer, **changed):
    """Two pictures of different sizes, the second with two boxes found, a broken one among them, and no true mask."""
    mask = np.zeros((4, 5), bool)
    mask[1:3, :2] = True
    given = {
        "images": [picture(), np.full((6, 3, 3), 7, np.uint8)],
        "boxes": {
            "prediction": [torch.tensor([0, 1, 2, 3]), np.array([[0, 0, 2.5, 4], [np.nan, 0, 1, 1]])],
            "truth": [[1, 1, 4, 4], np.zeros((0, 4))],
        },
        "masks": {
            "prediction": [mask, torch.ones(6, 3, dtype=torch.bool)],
            "truth": [mask.astype(np.uint8), np.zeros((6, 3))],
        },
        "captions": ["left | 0.5", "all"],
        "sheet": np.zeros((20, 30, 3), np.uint8),
    }
    return RunReport().overlay(trainer, "val/grounding", **given | changed)


def test_an_overlay_leaves_its_sheet_and_so_it_is_for_other_loggers(make_trainer, tmp_path):
    taking, board = Taking(), Board()
    trainer = make_trainer(logger=[taking])
    trainer._loggers.append(board)
    path = overlay_of(trainer)
    assert path == tmp_path / "pictures" / "val_grounding.png"
    assert Image.open(path).size == (30, 20)
    assert taking.images == [("val/grounding", [str(path)], 0)]
    assert [(call[0], call[1], call[2].shape) for call in board.calls] == [("add_image", "val/grounding", (20, 30, 3))]


def test_wandb_gets_an_overlay_as_pictures_with_boxes_and_masks_of_its_own(offline, tmp_path):
    trainer, logger = offline
    overlay_of(trainer)
    logger.close()
    record = read_record(tmp_path / "run")
    (shown,) = record.at("val/grounding").values()
    assert list(record.at("val/grounding")) == [3]
    assert (shown["_type"], shown["count"], shown["captions"]) == ("images/separated", 2, ["left | 0.5", "all"])
    assert (shown["width"], shown["height"]) == (5, 6)  # both, filled up with white
    first, second = (np.asarray(Image.open(path)) for path in record.media["val/grounding"])
    assert first.shape == second.shape == (6, 5, 3)
    assert (first[:4] == picture()).all()
    assert (first[4:] == 255).all()
    assert (second[:, 3:] == 255).all()

    files = record.folder / "files"
    classes = {"1": "prediction", "2": "truth"}
    boxes = [
        {layer: json.loads((files / each["path"]).read_text()) for layer, each in of.items()}
        for of in shown["all_boxes"]
    ]
    found = {
        (row, layer): [list(box["position"].values()) for box in each["box_data"]]
        for row, of in enumerate(boxes)
        for layer, each in of.items()
    }
    assert found == {
        (0, "prediction"): [[0, 1, 2, 3]],
        (0, "truth"): [[1, 1, 4, 4]],
        (1, "prediction"): [[0, 0, 2.5, 4]],
        (1, "truth"): [],
    }
    assert list(boxes[0]["truth"]["box_data"][0]["position"]) == ["minX", "minY", "maxX", "maxY"]
    assert {each["box_data"][0]["domain"] for each in boxes[0].values()} == {"pixel"}  # else they are parts of a side
    assert [boxes[0][layer]["box_data"][0]["class_id"] for layer in ("prediction", "truth")] == [1, 2]
    assert boxes[0]["truth"]["class_labels"] == classes
    masks = [{layer: np.asarray(Image.open(files / m["path"])) for layer, m in of.items()} for of in shown["all_masks"]]
    expected = np.zeros((6, 5), np.uint8)
    expected[1:3, :2] = 1
    assert (masks[0]["prediction"] == expected).all()
    assert (masks[0]["truth"] == 2 * expected).all()
    assert (masks[1]["prediction"] == [1, 1, 1, 0, 0]).all()
    assert not masks[1]["truth"].any()
    assert record.config["_wandb"]["mask/class_labels"]["val/grounding_wandb_delimeter_truth"]["value"] == classes


def test_an_overlay_without_boxes_or_masks_is_one_still(make_trainer):
    logger = Wandb()
    overlay_of(make_trainer(logger=logger), masks={})
    overlay_of(make_trainer(logger=logger), boxes={}, masks={})
    with_boxes, bare = (logged["val/grounding"] for logged, _ in logger.logged)
    assert list(with_boxes[0]._boxes) == ["prediction", "truth"]
    assert with_boxes[0]._masks is None
    assert bare[0]._boxes is None
    assert len(bare) == 2


def test_overlays_that_do_not_fit_together(make_trainer):
    trainer = make_trainer()
    for wrong, message in [
        ({"images": []}, "images must be at least one picture, got none"),
        ({"captions": ["one"]}, "captions must have one entry for each of 2 images, got 1"),
        ({"masks": {"truth": []}}, r"masks\['truth'\] must have one entry for each of 2 images, got 0"),
        ({"boxes": {"found": [[0, 0, 1, 1]] * 3}}, r"boxes\['found'\] must have one entry for each of 2 images, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            overlay_of(trainer, **wrong)


def test_other_processes_hand_over_no_overlay(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", property(lambda self: False))
    assert overlay_of(trainer, sheet=None) == tmp_path / "pictures" / "val_grounding.png"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("first", ["figure", "table"])
def test_a_table_beside_a_picture_has_a_key_of_its_own_at_the_loggers(first, make_trainer, tmp_path):
    """Whichever comes first, as after a resume; the file keeps its name, and other tables their keys."""
    logger = Taking()
    trainer, report = make_trainer(logger=logger), RunReport()
    shows = {
        "figure": lambda: report.picture(trainer, "cluster/steps", picture()),
        "table": lambda: report.table_beside(trainer, "cluster/steps", ["step"], [[1]]),
    }
    paths = [shows[kind]() for kind in sorted(shows, key=lambda kind: kind != first)]
    assert {path.relative_to(tmp_path).as_posix() for path in paths} == {
        "pictures/cluster_steps.png",
        "tables/cluster_steps.csv",
    }
    report.table(trainer, "cluster/others", ["step"], [[2]])
    assert [key for key, *_ in logger.images] == ["cluster/steps"]
    assert [key for key, *_ in logger.tables] == ["cluster/steps_table", "cluster/others"]
