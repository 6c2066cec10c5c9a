"""What MosaicHitRate draws and measures, on a network whose sub-architectures look where they should."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from callbacks import MosaicHitRate
from callbacks.mosaic_hit_rate import _Pictures, hit_statistics
from callbacks.report import RunReport
from datamodules import CIFARDataModule
from datamodules.cifar import TensorImages
from datamodules.classification import ImageClassificationDataModule
from lit_methods import NAD, ImageClassifier
from lit_methods.functional.pictures import BadImageError
from lit_methods.nad.analysis import mosaic_image
from lit_methods.nad.functional import activation_map, focus_mask, quadrant_hit_rate
from tests.victims import MEAN, STD, trained_weights

COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
SIDE = 16


class Colours(ImageClassificationDataModule):
    """Pictures in one colour each, brighter in some places; their class is the colour."""

    def __init__(self, side=SIDE, absent=()):
        super().__init__(batch_size=4, num_workers=0, val_fraction=0, seed=0)
        self.num_classes, self.class_names = 4, ["red", "green", "blue", "yellow"]
        self.mean, self.std, self.input_size, self.absent = [0.0] * 3, [1.0] * 3, [3, side, side], absent

    def read_split(self, train):
        labels = np.array([k for k in range(4) if k not in self.absent] * 3)
        brightness = 0.6 + 0.4 * torch.rand(
            len(labels), 1, *self.input_size[1:], generator=torch.Generator().manual_seed(0)
        )
        images = brightness * COLOURS[torch.from_numpy(labels)][:, :, None, None]
        return TensorImages((255 * images).to(torch.uint8), labels)


def seer(side=SIDE, openness=None, **options):
    """Its gates are behind a layer with a channel for each colour; each class has its own one open alone."""
    detect = nn.Conv2d(3, 4, 1)
    with torch.no_grad():  # colours of the others, and mixtures at the seams, stay below zero or far behind
        weight = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [0.5, 0.5, -1]])
        detect.weight.copy_(weight[:, :, None, None])
        detect.bias.copy_(torch.tensor([0.0, 0, 0, -0.51]))
    pool = nn.AvgPool2d(2)
    net = nn.Sequential(detect, nn.ReLU(), pool, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    module = NAD(net, ["1", "2"], num_classes=4, input_size=[3, side, side], **options)
    for logits in module.gate_logits:
        logits.data[:] = (torch.eye(4) if openness is None else openness)[module.class_ids] - 0.5
    return module


@pytest.fixture
def shown(monkeypatch):
    """What is handed to RunReport, by key; of the figure, what it is drawn from."""
    found = SimpleNamespace(figure={}, table={}, picture={})
    monkeypatch.setattr("callbacks.mosaic_hit_rate.hit_rate_figure", lambda *args: args)
    for kind, into in vars(found).items():

        def keep(self, trainer, key, *args, into=into):
            into[key] = args if len(args) > 1 else args[0]

        monkeypatch.setattr(RunReport, kind, keep)
    return found


def measure(make_trainer, module, data=None, **options):
    callback = MosaicHitRate(**{"num_mosaics": 5} | options)
    make_trainer(callbacks=[callback]).test(module, datamodule=data or Colours(), verbose=False)
    return callback.summary()


def test_sub_architectures_that_look_at_their_class_always_hit(make_trainer, shown):
    summary = measure(make_trainer, seer())
    assert summary == {
        "nad/hit_rate": 1.0,
        "nad/hit_rate_best": 1.0,
        "nad/hit_rate_best_layer": "1",
        "nad/hit_rate_chance": 0.25,
    }
    columns, rows = shown.table["nad/hit_rate"]
    assert columns == ["gate_point", "mean", "std", "mosaics"]
    assert rows == [["1", 1.0, 0.0, 5], ["2", 1.0, 0.0, 5]]


def test_a_class_that_looks_at_another_one_never_hits(make_trainer, shown):
    openness = torch.eye(4)[[1, 0, 2, 3]]  # red looks at green and green at red
    assert measure(make_trainer, seer(openness=openness))["nad/hit_rate"] == pytest.approx(0.5)


def test_a_class_without_a_focus_is_left_out(make_trainer, shown):
    openness = torch.eye(4)[[1, 0, 2, 3]]
    openness[0] = 0
    assert measure(make_trainer, seer(openness=openness))["nad/hit_rate"] == pytest.approx(2 / 3)


def test_without_any_focus_there_is_a_warning_and_no_figure(make_trainer, shown):
    with pytest.warns(UserWarning, match="no map of any mosaic has contrast"):
        assert measure(make_trainer, seer(openness=torch.zeros(4, 4))) == {}
    assert shown == SimpleNamespace(figure={}, table={}, picture={})


def digits():
    return CIFARDataModule("digits", batch_size=64, num_test_images=80)


def reader(**options):
    torch.manual_seed(0)
    data = {"num_classes": 10, "input_size": [3, 32, 32], "mean": MEAN, "std": STD}
    module = NAD("tiny", [f"body.relu{i}" for i in (1, 2, 3)], **data | options)
    module.model.load_state_dict(trained_weights())
    return module


def test_the_hit_rate_is_that_of_one_image_one_class_and_one_layer_at_a_time(make_trainer, shown):
    module, data = reader(class_ids=[9, 1, 4, 7, 2]), digits()
    measure(make_trainer, module, data, num_mosaics=3, rate=0.2, batch_size=2)
    pictures, scores = _Pictures(data.test_images, module.class_ids, seed=0), np.empty((3, 3))
    for mosaic in range(3):
        labels, tiles = pictures.draw(mosaic)
        image = mosaic_image(tiles, 32)[None].float() / 255
        for layer in range(3):
            hits = []
            for quarter, label in enumerate(labels):
                with torch.no_grad():
                    task = module.class_ids.index(label)
                    _, maps = module.gated(module.as_fed(image), task=task, mode="hard", return_activations=True)
                focus = focus_mask(activation_map(maps[layer][0], 32, "bicubic"), 0.2)
                hits.append(float(quadrant_hit_rate(focus)[quarter]))
            scores[mosaic, layer] = np.nanmean(hits)
    mean, std, points = shown.figure["nad/hit_rate"]
    assert mean == pytest.approx(scores.mean(0))
    assert std == pytest.approx(scores.std(0))
    assert points == module.gated.gate_points
    height, width, _ = shown.picture["nad/mosaic"].shape
    assert width > 4.5 * height * 160 / 184  # five pictures side by side


def test_results_do_not_depend_on_the_batch_size_but_on_the_seed(make_trainer, shown):
    module = reader()
    many, few, other = (
        measure(make_trainer, module, digits(), **options) for options in ({}, {"batch_size": 2}, {"seed": 1})
    )
    assert many == pytest.approx(few)
    assert many["nad/hit_rate"] != other["nad/hit_rate"]


def test_every_process_measures_its_share(make_trainer, shown, monkeypatch):
    """Two processes, one after the other: what each of them measures together is what one measures alone."""
    module, found = reader(), []
    measure(make_trainer, module, digits())
    alone = shown.figure["nad/hit_rate"][0]
    monkeypatch.setattr("callbacks.mosaic_hit_rate.gather_objects", lambda mine: found.append(mine) or [mine])
    monkeypatch.setattr("callbacks.mosaic_hit_rate.interruptible", lambda trainer, batches: batches)
    for rank in range(2):
        trainer = make_trainer()
        data = trainer.datamodule = digits()
        data.setup("test")
        monkeypatch.setattr(type(trainer), "world_size", 2)
        monkeypatch.setattr(type(trainer), "global_rank", rank)
        monkeypatch.setattr(type(trainer), "is_global_zero", False)
        MosaicHitRate(num_mosaics=5).on_test_epoch_end(trainer, module)
    assert [sorted(mine) for mine in found] == [[0, 2, 4], [1, 3]]
    together = found[0] | found[1]
    assert hit_statistics(np.stack([together[i] for i in range(5)]))[0] == pytest.approx(alone)


# -- what is drawn -----------------------------------------------------------------------------------------------------


class Numbered:
    """Test pictures that bear their position; some cannot be read."""

    def __init__(self, targets, bad=()):
        self.targets, self.bad = np.array(targets), bad

    def picture(self, position):
        if position in self.bad:
            raise BadImageError(f"cannot read {position}")
        return Image.new("RGB", (2, 2), (position, 0, 0))


def drawn(images, mosaic, class_ids=range(10), seed=0):
    labels, tiles = _Pictures(images, list(class_ids), seed).draw(mosaic)
    return labels, [tile.getpixel((0, 0))[0] for tile in tiles]


def test_four_classes_with_gates_and_a_picture_of_each():
    images = Numbered([i % 7 for i in range(70)])
    seen, places = set(), set()
    for mosaic in range(60):
        labels, positions = drawn(images, mosaic, class_ids=[8, 6, 5, 3, 1, 0])
        assert len({*labels}) == 4
        assert images.targets[positions].tolist() == labels
        seen.update(labels)
        places.update(positions)
    assert seen == {0, 1, 3, 5, 6}
    assert len(places) > 40
    assert drawn(images, 3) == drawn(images, 3)
    assert drawn(images, 3) != drawn(images, 3, seed=1)


def test_a_picture_that_cannot_be_read_gives_way_to_another_one_of_its_class():
    labels, positions = drawn(Numbered([0, 1, 2, 3, 0, 1, 2, 3], bad=(0, 5)), 0)
    assert {*positions} & {4, 1} == {4, 1}
    assert [position % 4 for position in positions] == labels
    with pytest.raises(BadImageError, match="cannot read"):
        drawn(Numbered([0, 1, 2, 3], bad=(0,)), 0)


def test_fewer_than_four_classes_are_too_few(make_trainer, shown):
    with pytest.warns(UserWarning, match="needs test images of 4 classes with gates, there are 3"):
        assert measure(make_trainer, seer(), Colours(absent=(2,))) == {}
    with pytest.warns(UserWarning, match="there are 3"):
        measure(make_trainer, seer(class_ids=[0, 1, 3]))
    assert shown == SimpleNamespace(figure={}, table={}, picture={})


def test_scores_without_a_value_are_left_out():
    nan = math.nan
    hits = np.array([[[0.2, nan, 0.4, nan], [nan] * 4], [[1.0, 0.0, 0.5, 0.9], [nan] * 4]])
    mean, std, counted = hit_statistics(hits)
    assert mean == pytest.approx([0.45, nan], nan_ok=True)
    assert std == pytest.approx([0.15, nan], nan_ok=True)
    assert counted.tolist() == [2, 0]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_mosaics": 0}, "num_mosaics=0 and batch_size=16 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"rate": 0.0}, r"rate=0.0 must lie in \(0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MosaicHitRate(**options)


def test_an_odd_side_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"input_size=\[3, 15, 15\]: .* even side, such as 16"):
        measure(make_trainer, seer(side=15), Colours(side=15))


def test_less_than_a_pixel_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"rate=0\.001 is less than one of 16 x 16 pixels"):
        measure(make_trainer, seer(), rate=0.001)


def test_loaders_alone_have_no_test_pictures(make_trainer):
    data = Colours()
    data.trainer = None
    trainer = make_trainer(callbacks=[MosaicHitRate()])
    with pytest.raises(ValueError, match="run the test with a data module that has test_images"):
        trainer.test(seer(), dataloaders=[{"image": torch.zeros(1, 3, SIDE, SIDE), "label": torch.zeros(1).long()}])


def test_a_module_without_gates_is_refused(make_trainer):
    with pytest.raises(ValueError, match="for modules with gates, such as NAD, not for ImageClassifier"):
        measure(make_trainer, ImageClassifier("tiny"), digits())
