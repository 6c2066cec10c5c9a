"""ASFD: ``test --predictions DIR`` scores what any detector left in files."""

from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser

from lit_methods.asfd.own_predictions import OwnPredictions
from lit_methods.functional.wider_files import prediction_path, write_predictions
from lit_methods.metrics import WIDERFaceAP

NAMES = ["0--Parade/a", "1--Handshaking/b", "1--Handshaking/c"]
BOXES = torch.tensor([[10.0, 20, 30, 40.5], [50, 60, 7, 8]])  # x, y, w, h


class Plain:
    """Stands for the LightningModule under the mixin."""

    @classmethod
    def add_cli_arguments(cls, parser, entry):
        parser.add_argument("--other")

    def setup(self, stage):
        self.seen = stage


class Data:
    """Stands for the data."""

    pictures_needed = True

    def evaluation_names(self, stage):
        assert stage == "test"
        return NAMES


def module_on(data):
    module = type("Module", (OwnPredictions, Plain), {})()
    module.trainer = SimpleNamespace(datamodule=data)
    return module


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(NAMES):
        write_predictions(prediction_path(tmp_path, name), name, BOXES[:i], torch.tensor([0.75, 0.5])[:i])
    return tmp_path


def test_batches_get_the_boxes_of_their_images(folder):
    module = module_on(Data())
    module.take_options(predictions=str(folder))
    module.setup("test")
    assert module.seen == "test"
    assert not module.trainer.datamodule.pictures_needed
    two, none = module.predictions_of({"index": torch.tensor([2, 0])})
    assert two["boxes"].tolist() == [[10, 20, 40, 60.5], [50, 60, 57, 68]]
    assert two["scores"].tolist() == [0.75, 0.5]
    assert (none["boxes"].shape, none["scores"].shape) == ((0, 4), (0,))
    assert module.predictions_of({"index": torch.tensor([], dtype=torch.int64)}) == []
    assert module.summary() == {"test/predictions": str(folder)}


def test_what_was_read_is_scored_by_the_metric(folder):
    module = module_on(Data())
    module.take_options(predictions=str(folder))
    module.setup("test")
    corners = torch.cat([BOXES[:, :2], BOXES[:, :2] + BOXES[:, 2:]], 1)
    metric = WIDERFaceAP(())
    for i in range(3):
        metric.update(module.predictions_of({"index": torch.tensor([i])}), [{"boxes": corners[:i]}])
    assert metric.compute() == {"all": 1}


def test_without_the_option_faces_are_looked_for(folder):
    module = module_on(Data())
    module.setup("test")
    assert module.predictions_of({"index": torch.tensor([0])}) is None
    assert module.trainer.datamodule.pictures_needed
    assert module.summary() == {}
    module.take_options(predictions=str(folder))
    module.setup("fit")
    assert module.predictions_of({"index": torch.tensor([0])}) is None
    module.setup("test")
    assert module.predictions_of({"index": torch.tensor([0])}) is not None
    module.take_options()
    module.setup("test")
    assert module.predictions_of({"index": torch.tensor([0])}) is None
    assert module.trainer.datamodule.pictures_needed


def test_a_folder_that_lacks_an_image_stops_before_the_test(folder):
    prediction_path(folder, NAMES[1]).unlink()
    module = module_on(Data())
    module.take_options(predictions=str(folder))
    with pytest.raises(FileNotFoundError, match=r"lacks the files of 1 of 3 images: 1--Handshaking/b\..*data\.root"):
        module.setup("test")


@pytest.mark.parametrize("data", [None, SimpleNamespace()])
def test_predictions_need_data_that_know_their_images(data):
    module = module_on(data)
    module.take_options(predictions="mine")
    with pytest.raises(ValueError, match="predictions='mine' can be scored on a datamodule that knows its images by n"):
        module.setup("test")


@pytest.mark.parametrize("entry", ["test", "fit"])
def test_the_option_belongs_to_tests_beside_those_of_other_mixins(entry):
    parser = ArgumentParser()
    type(module_on(None)).add_cli_arguments(parser, entry)
    assert ("--predictions" in parser.format_help()) == (entry == "test")
    assert "--other" in parser.format_help()
