"""What does not fit a module is told before it answers wrongly: other squares, other lengths, layers by chance."""

import warnings

import pytest
import torch

from lit_methods import MCN
from tests.mcn_batches import SIDE, asked, loader, mcn, views
from tests.refer_data import ready, write_refer

pytestmark = pytest.mark.usefixtures("light_grounder")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_refer(tmp_path_factory.mktemp("refer"))


def brief(make_trainer, **more):
    return make_trainer(**{"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0} | more)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [SIDE - 32, SIDE + 32])
def test_pictures_of_another_square_are_refused(side, make_trainer):
    """Their boxes would be found, but in the pixels of another square."""
    module, batch = mcn().eval(), asked(pictures=1) | {"image": torch.rand(2, 3, side, side)}
    text = rf"image is \(.*{side}, {side}\), but input_size=\[3, {SIDE}, {SIDE}\].*data\.size {SIDE}"
    for answer in (lambda: module.predict_step(batch, 0), lambda: module(batch["image"], batch["tokens"])):
        with pytest.raises(ValueError, match=text):
            answer()
    with pytest.raises(ValueError, match=text):
        make_trainer().test(module, loader(batch), verbose=False)


# -- the length of sentences -------------------------------------------------------------------------------------------


def test_a_resumed_run_and_a_prediction_refuse_sentences_that_are_cut_elsewhere(make_trainer, root, tmp_path):
    trainer = brief(make_trainer)
    trainer.fit(mcn(vocabulary=None), datamodule=ready(root))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    text = r"data\.max_words=5, but the module was trained with 4, .* set data\.max_words 4"
    with pytest.raises(ValueError, match=text):
        brief(make_trainer, max_epochs=2).fit(
            mcn(vocabulary=None), datamodule=ready(root, max_words=5), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )
    module = MCN.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=text):
        make_trainer().predict(module, datamodule=ready(root, "predict", max_words=5))


def test_the_checkpoint_says_whether_words_are_trained_also_where_the_words_are_the_same():
    for kept, given in ((False, None), (True, False)):
        module = mcn(train_words=given)
        module.on_load_checkpoint({"hyper_parameters": dict(module.hparams) | {"train_words": kept}})
        assert module.words.weight.requires_grad is kept


# -- frozen layers -----------------------------------------------------------------------------------------------------


def frozen_layers_told(make_trainer, module):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        brief(make_trainer).fit(module, loader(views()))
    return [str(warning.message) for warning in told if "freeze_backbone=True" in str(warning.message)]


def test_frozen_layers_without_trained_weights_are_told(make_trainer, tmp_path):
    (told,) = frozen_layers_told(make_trainer, mcn(freeze_backbone=True))
    assert "give model.backbone_weights" in told
    learning = mcn()
    assert not frozen_layers_told(make_trainer, learning)
    torch.save(learning.model.backbone.state_dict(), tmp_path / "backbone.pt")
    frozen = mcn(freeze_backbone=True, backbone_weights=str(tmp_path / "backbone.pt"))
    assert not frozen_layers_told(make_trainer, frozen)
