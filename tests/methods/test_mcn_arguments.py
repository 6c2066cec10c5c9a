"""MCN's arguments: those refused, and what its files, its checkpoints and its words do."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from lit_methods import MCN
from lit_methods.inference import Predictor
from tests.mcn_batches import SIDE, WORDS, asked, fit, mcn, settled

pytestmark = pytest.mark.usefixtures("light_grounder")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"backbone": "darknet"}, r"backbone='darknet' must be one of darknet53, vgg16, tiny"),
        ({"backbone_weights": "nowhere.pt"}, r"nowhere\.pt"),
        ({"word_dim": 0}, r"word_dim=0 must be at least 1"),
        ({"hidden": 33}, r"hidden=33 must be a multiple of num_heads=2"),
        ({"dim": 0}, r"dim=0 must be a multiple of num_heads=2"),
        ({"dim": 9, "hidden": 33, "num_heads": 3}, r"dim=9"),
        ({"num_heads": 0}, r"num_heads=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1\.0 must lie in \[0, 1\)"),
        ({"bn_momentum": 0.0}, r"bn_momentum=0\.0 must lie in \(0, 1\]"),
        ({"anchors": []}, r"anchors=\[\] must be pairs of a width and a height"),
        ({"anchors": [[1, 2, 3]]}, r"anchors=\[\[1, 2, 3\]\] must be pairs"),
        ({"anchors": [[0, 2]]}, r"anchors=\[\[0, 2\]\] must be pairs .* both positive"),
        ({"input_size": [3, 64, 96]}, r"input_size=\[3, 64, 96\] must be \[3, S, S\], S a multiple of 32"),
        ({"input_size": [3, 50, 50]}, r"input_size=\[3, 50, 50\]"),
        ({"input_size": [1, 64, 64]}, r"input_size=\[1, 64, 64\]"),
        ({"vocabulary": ["red", "red"]}, r"'red'"),
        ({"max_words": 0}, r"max_words=0 must be at least 1"),
        ({"rec_weight": -1.0}, r"rec_weight=-1\.0 must not be negative"),
        ({"seg_weight": -1.0}, r"seg_weight=-1\.0 must not be negative"),
        ({"cem_weight": -1.0}, r"cem_weight=-1\.0 must not be negative"),
        ({"ignore_iou": 1.5}, r"ignore_iou=1\.5 must lie in \[0, 1\]"),
        ({"asnls": "firm"}, r"asnls='firm' must be one of adaptive, soft, hard, none"),
        ({"threshold": 1.0}, r"threshold=1\.0 must lie in \[0, 1\)"),
        ({"lr": 0.0}, r"lr=0\.0 must be positive"),
        ({"lr": float("nan")}, r"lr=nan must be positive"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0 must not be negative"),
        ({"milestones": [5, 5]}, r"milestones=\[5, 5\] must be epochs, each after the one before"),
        ({"gamma": 0.0}, r"gamma=0\.0 must lie in \(0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, text):
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        mcn(**arguments)


def test_anchors_are_those_of_the_paper_scaled_to_the_input():
    assert_close(mcn(anchors=None).anchors, torch.tensor([[137.0, 256], [248, 272], [386, 271]]) * SIDE / 416)
    assert mcn(anchors=None, input_size=None).anchors.tolist() == [[137, 256], [248, 272], [386, 271]]
    assert mcn(anchors=[[5, 6]]).model.rec.out_channels == 5


def test_a_checkpoint_gives_the_same_answers_without_its_first_weights(make_trainer, tmp_path):
    torch.save(mcn().model.backbone.state_dict(), tmp_path / "backbone.pt")
    module = settled(backbone_weights=str(tmp_path / "backbone.pt"))
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "backbone.pt").unlink()
    again = MCN.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert again.hparams["backbone_weights"] is None
    assert again.hparams["vocabulary"] == WORDS
    batch = asked(0)
    given = [batch[name] for name in ("image", "tokens", "size", "image_id")]
    ours, theirs = module.predict_rows(*given), again.predict_rows(*given)
    assert all(map(torch.equal, ours[:2], theirs[:2]))
    assert all(map(torch.equal, ours[2], theirs[2]))
    found = Predictor.from_checkpoint(tmp_path / "a.ckpt").module.ground(batch["image"][0], "the red square")
    assert found[0]["pred_mask"].shape == (SIDE, SIDE)


def test_a_backbone_starts_from_its_file(tmp_path):
    other = mcn().model.backbone
    torch.save(other.state_dict(), tmp_path / "backbone.pt")
    module = mcn(backbone_weights=str(tmp_path / "backbone.pt"), freeze_backbone=True)
    for name, value in other.state_dict().items():
        assert torch.equal(module.model.backbone.state_dict()[name], value)


def test_a_script_gives_loaders_of_its_own_and_the_words(make_trainer):
    with pytest.raises(ValueError, match=r"vocabulary=None: without a RefCOCODataModule give the words"):
        fit(make_trainer(max_epochs=1), mcn(vocabulary=None))
    module = mcn()
    module._trainer = SimpleNamespace(datamodule=None, precision="32-true")
    module.setup("fit")
    assert module.ids["blue"] == 2
