"""The module at its edges: one small picture, other precisions, loaders of one's own, what its text says of it."""

import json

import pytest
import torch
from torch.testing import assert_close

from callbacks import AutoFEMSearch, DetectionResults
from callbacks.auto_fem_figures import edge_weights_figure
from lit_methods import ASFD, ASFDSearch
from lit_methods.asfd.pixels import Pixels
from lit_methods.functional.pictures import BadImageError
from tests.asfd_batches import SIDE, asfd, loader, pictures, views
from tests.left_behind import read_rows

FEW = ["identity", "conv_1x1"]


def test_a_single_picture_of_the_smallest_size_is_learnt_from():
    """Its top level has one cell, of which batch norm knows no spread."""
    module, given = asfd(), views(0, (1,))
    assert given["image"].shape == (1, 3, SIDE, SIDE)
    cls, loc = module.answers(given["image"])
    assert (len(cls), len(loc)) == (1, 1)
    module.losses(given)["loss"].backward()
    assert all(x.grad.isfinite().all() for x in module.parameters() if x.grad is not None)


def test_half_precision_of_the_weights_is_refused_as_it_rounds_boxes(make_trainer):
    trainer = make_trainer(max_epochs=1, precision="bf16-true")
    with pytest.raises(ValueError, match="precision=bf16-true rounds the boxes of a batch"):
        trainer.fit(asfd(), loader(views()))


def test_pixels_take_the_type_of_the_network():
    """As under ``precision=64-true``, where pictures are float32 after their transfer."""
    for kind in ("imagenet", "caffe"):
        image, pixels = torch.rand(1, 3, 4, 4), Pixels(kind)
        assert not pixels.state_dict()  # nothing that older checkpoints lack
        assert pixels.double()(image).dtype == torch.float64
        assert_close(pixels(image).float(), Pixels(kind)(image))


def test_a_low_threshold_of_zero_is_refused_before_a_step_is():
    with pytest.raises(ValueError, match=r"low_threshold=0\.0 must lie between 0 and match_threshold"):
        asfd(low_threshold=0.0)


def test_detections_have_no_graph_in_a_script():
    (found,) = asfd().eval().detect([torch.rand(3, SIDE, SIDE)])
    assert not found.requires_grad


def test_a_picture_too_long_for_many_scales_is_named():
    module = asfd(multi_scale=True).eval()
    batch = {"image": [torch.empty(3, 128, 1).expand(3, 128, 200_000)], "name": ["7--Fair/long"]}
    with pytest.raises(BadImageError, match=r"picture '7--Fair/long' is .* in its main view"):
        module._detections(batch)


def test_its_text_says_which_detector_it_is():
    assert "size='d0', channels=56, genotype='6<23" in repr(ASFD())
    assert "size='d0', channels=4, partial=False, shared_cpm=True" in repr(ASFDSearch("d0", channels=4))


def test_a_search_takes_loaders_without_a_datamodule(make_trainer, monkeypatch, tmp_path):
    monkeypatch.setattr("callbacks.report.RunReport.figure", lambda *args: None)
    arguments = {"channels": 4, "fpn_ops": FEW, "cpm_ops": FEW, "warmup_steps": 0}
    trainer = make_trainer(max_epochs=1, callbacks=[AutoFEMSearch(0.0)], default_root_dir=tmp_path)
    trainer.fit(ASFDSearch("d0", **arguments), loader({"weights": views(0), "alphas": views(1)}))
    assert trainer.global_step == 2
    (row,) = read_rows(tmp_path / "tables" / "search_found.csv")  # what loggers get
    assert json.loads(row["genotype"]) == json.loads((tmp_path / "genotype.json").read_text())
    trainer = make_trainer(max_epochs=1, callbacks=[AutoFEMSearch(0.0)])
    with pytest.raises(ValueError, match=r"of two halves of the training set, but has image, boxes, index"):
        trainer.fit(ASFDSearch("d0", **arguments), loader(views()))


def test_a_test_of_pictures_without_names_says_what_its_files_need(make_trainer):
    batch = pictures((128, 128))
    del batch["name"]
    with pytest.raises(ValueError, match=r"DetectionResults writes a file .* it lacks name"):
        make_trainer(callbacks=[DetectionResults()]).test(asfd(), loader(batch), verbose=False)


def test_operations_of_ones_own_are_named_in_the_figure():
    ops = {"fpn": FEW, "cpm": [*FEW, "sep_conv_3x3_d2"]}
    figure = edge_weights_figure({"fpn": torch.full((16, 2), 0.5), "cpm": torch.full((6, 3), 1 / 3)}, ops)
    names = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes[:2]]
    assert names == [["identity", "conv 1x1"], ["identity", "conv 1x1", "sep conv 3x3 d2"]]
