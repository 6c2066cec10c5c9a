import csv

import numpy as np
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image

from callbacks import RunReport


class Taking(DummyLogger):
    """A logger with Lightning's methods for media."""

    def __init__(self):
        super().__init__()
        self.images, self.tables = [], []

    def log_image(self, key, images):
        self.images.append((key, images))

    def log_table(self, key, columns, data):
        self.tables.append((key, columns, data))


def test_files_and_loggers_get_the_same(make_trainer, tmp_path):
    logger = Taking()
    trainer = make_trainer(logger=logger, callbacks=[RunReport(dpi=50)])
    report = RunReport.of(trainer)
    assert report.dpi == 50
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    path = report.figure(trainer, "prune/kept", figure)
    assert path == tmp_path / "pictures" / "prune_kept.png"
    assert Image.open(path).width > 50
    picture = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    assert (np.asarray(Image.open(report.picture(trainer, "val/grid", picture))) == picture).all()
    path = report.table(trainer, "prune/table", ["layer", "kept"], [["conv, first", 4], ["b", 0.25]])
    assert list(csv.reader(path.open())) == [["layer", "kept"], ["conv, first", "4"], ["b", "0.25"]]
    assert [key for key, _ in logger.images] == ["prune/kept", "val/grid"]
    assert logger.tables == [("prune/table", ["layer", "kept"], [["conv, first", 4], ["b", 0.25]])]


def test_other_processes_write_nothing(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", property(lambda self: False))
    RunReport().table(trainer, "a/b", ["c"], [[1]])
    assert not (tmp_path / "tables").exists()
