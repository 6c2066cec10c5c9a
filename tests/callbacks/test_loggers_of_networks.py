"""PredictionLogger and ComplexityLogger."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image
from torch.utils.data import DataLoader

from callbacks import ComplexityLogger, PredictionLogger
from lit_methods import ImageClassifier
from lit_methods.backbones import PrunePlan, build_backbone
from lit_methods.functional import count_macs

DATA = [{"image": torch.full((3, 16, 16), i / 16), "label": torch.tensor(i % 4)} for i in range(16)]


def test_grids_show_the_first_pictures_and_their_truth(make_trainer, tmp_path):
    seen = []

    class Noting(ImageClassifier):
        def draw(self, image, prediction):
            seen.append((image[0, 0, 0], prediction["label"]))
            return super().draw(image, prediction)

    loader = DataLoader(DATA, batch_size=8)
    module = Noting("tiny", num_classes=4)
    trainer = make_trainer(max_epochs=3, callbacks=[PredictionLogger(num_images=5, every_n_epochs=2)])
    trainer.fit(module, loader, loader)
    assert [label for _, label in seen] == [0, 1, 2, 3, 0] * 2  # epochs 0 and 2, not the sanity check
    assert [pixel for pixel, _ in seen[:5]] == [round(255 * i / 16) for i in range(5)]
    assert module.training  # drawing left the mode alone
    grid = np.asarray(Image.open(tmp_path / "pictures" / "val_predictions.png"))
    assert grid.shape == (184, 5 * 162 + 2, 3)
    trainer.test(module, loader, verbose=False)
    assert (tmp_path / "pictures" / "test_predictions.png").is_file()


def test_modules_that_cannot_draw_are_named(make_trainer):
    with pytest.raises(ValueError, match="BoringModel has not"):
        make_trainer(callbacks=[PredictionLogger()], fast_dev_run=True).fit(BoringModel())


def test_an_answer_does_not_take_the_name_of_the_truth(make_trainer):
    class Guessing(ImageClassifier):
        def predict_step(self, batch, batch_idx):
            return [{"label": 0} for _ in batch["image"]]

    loader = DataLoader(DATA, batch_size=8)
    with pytest.raises(ValueError, match="predict_step gives label, as the batch calls the truth"):
        make_trainer(callbacks=[PredictionLogger()]).test(Guessing("tiny", num_classes=4), loader, verbose=False)


def test_truth_of_other_kinds_goes_to_draw(make_trainer):
    seen = []

    class Boxes(ImageClassifier):
        def draw(self, image, prediction):
            seen.append(prediction["boxes"])
            return image

        def test_step(self, batch, batch_idx):
            pass

    batch = {"image": torch.zeros(2, 3, 16, 16), "boxes": [torch.ones(1, 4), torch.zeros(0, 4)]}
    trainer = make_trainer(callbacks=[PredictionLogger()])
    trainer.test(Boxes("tiny", num_classes=4), DataLoader([batch], batch_size=None), verbose=False)
    assert seen == [[[1.0] * 4], []]


@pytest.mark.parametrize("pruned", [False, True])
def test_costs_of_network_and_its_dense_twin(make_trainer, tmp_path, pruned):
    plan = PrunePlan("tiny", {"body.conv1": [0, 1], "body.conv2": [3]}).to_dict() if pruned else None
    module = ImageClassifier("tiny", num_classes=4, plan=plan, input_size=[3, 16, 16])
    callback = ComplexityLogger(repeats=1)
    make_trainer(max_epochs=1, callbacks=[callback]).fit(module, DataLoader(DATA, batch_size=8))
    result = callback.summary()
    dense = build_backbone("tiny", 4)
    assert result["complexity/macs"] == count_macs(module.model, (3, 16, 16))
    assert result["complexity/params"] == sum(p.numel() for p in module.model.parameters())
    assert result["complexity/latency_ms"] > 0
    assert ("complexity/dense_macs" in result) == pruned
    header = next(csv.reader((tmp_path / "tables" / "complexity.csv").open()))
    assert header == (["", "dense", "pruned"] if pruned else ["", "network"])
    if pruned:
        assert result["complexity/dense_macs"] == count_macs(dense, (3, 16, 16)) > 2 * result["complexity/macs"]
        assert result["complexity/dense_file_bytes"] > result["complexity/file_bytes"]
