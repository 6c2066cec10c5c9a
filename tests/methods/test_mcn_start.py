"""MCN begun from a checkpoint: its network and its words, or the backbone alone."""

from types import SimpleNamespace

import pytest
import torch

from lit_methods import MCN
from lit_methods.cli.loading import check_resumable
from tests.mcn_batches import mcn
from tests.refer_data import ready, write_refer

pytestmark = pytest.mark.usefixtures("light_grounder")
WORDS = ["dog", "man", "red", "the"]


def saved(module, path):
    """What a run would leave, without its loops."""
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save(content | {"loops": {}}, path)
    return str(path)


def begun(module, data, stage="fit"):
    """As far as a stage goes before its first batch."""
    module._trainer = SimpleNamespace(datamodule=data, precision="32-true")
    module.setup(stage)
    module._trainer = None
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A module, which nobody changes, and its checkpoint."""
    torch.manual_seed(1)
    module = mcn(vocabulary=WORDS, train_words=True)
    return module, saved(module, tmp_path_factory.mktemp("trained") / "a.ckpt")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data with words of their own: "a zebra" and "an apple"."""
    refs = [{"image": number, "split": "train", "told": ["a red zebra", "an apple"]} for number in (1, 2)]
    return write_refer(tmp_path_factory.mktemp("refer"), refs)


def equal(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_gives_network_and_words(trained):
    first, path = trained
    module = mcn(vocabulary=None, max_words=9, base_checkpoint=path)
    assert equal(module, first)
    assert module.ids == first.ids
    names = ("vocabulary", "max_words", "train_words")
    assert [module.hparams[name] for name in names] == [WORDS, 4, True]


def test_words_of_the_data_join_those_of_the_checkpoint(trained, root, tmp_path):
    first, path = trained
    data = ready(root)
    module = begun(mcn(vocabulary=None, base_checkpoint=path), data)
    assert [*WORDS, "a", "an", "apple", "zebra"] == module.hparams["vocabulary"] == data.vocabulary
    assert module.words.weight.requires_grad
    assert torch.equal(module.words.weight[:6], first.words.weight)
    kept = torch.load(saved(module, tmp_path / "b.ckpt"), weights_only=True)["hyper_parameters"]
    assert (kept["base_checkpoint"], kept["vocabulary"]) == (None, data.vocabulary)


def test_words_join_in_a_fit_behind_a_validation(trained, root):
    """Which tells the data the words of the checkpoint."""
    data, module = ready(root), mcn(vocabulary=None, base_checkpoint=trained[1])
    assert begun(module, data, "validate").hparams["vocabulary"] == data.vocabulary == WORDS
    assert begun(module, data).hparams["vocabulary"] == data.vocabulary == [*WORDS, "a", "an", "apple", "zebra"]


def test_frozen_vectors_are_joined_by_those_of_the_file(trained, tmp_path, root):
    first, path = trained
    (tmp_path / "glove.txt").write_text(f"zebra {'1 ' * 8}\nred {'2 ' * 8}\n")
    data = ready(root, glove=str(tmp_path / "glove.txt"))
    module = begun(mcn(vocabulary=None, train_words=False, base_checkpoint=path), data)
    assert [*WORDS, "zebra"] == module.hparams["vocabulary"] == data.vocabulary
    assert torch.equal(module.words.weight[:6], first.words.weight)
    assert module.words.weight[6].tolist() == [1] * 8
    assert not module.words.weight.requires_grad


def test_given_words_keep_their_ids_and_take_the_trained_vectors(trained):
    first, path = trained
    module = mcn(vocabulary=["zebra", "red"], base_checkpoint=path)
    assert module.ids == {"zebra": 2, "red": 3}
    assert torch.equal(module.words.weight[3], first.words.weight[4])
    assert not module._widens


def test_plain_weights_are_those_of_the_network_or_of_the_backbone(tmp_path):
    torch.manual_seed(2)
    other = mcn()
    torch.save(other.model.state_dict(), tmp_path / "network.pth")
    torch.save(other.model.backbone.state_dict(), tmp_path / "backbone.pth")
    whole, part = (mcn(base_checkpoint=str(tmp_path / name)) for name in ("network.pth", "backbone.pth"))
    assert equal(whole.model, other.model)
    assert equal(part.model.backbone, other.model.backbone)
    assert not equal(part.model.encoder, other.model.encoder)


def test_weights_that_do_not_fit_are_named_and_change_nothing(trained, tmp_path):
    _, path = trained
    with pytest.raises(ValueError, match=r"(?s)^base_checkpoint='.*a.ckpt' does not fit.*its own backbone, hidden"):
        mcn(hidden=16, base_checkpoint=path)
    with pytest.raises(FileNotFoundError, match=r"^base_checkpoint='nowhere.weights' does not exist"):
        mcn(base_checkpoint="nowhere.weights")
    with pytest.raises(FileNotFoundError, match=r"^base_checkpoint='nowhere.ckpt' does not exist"):
        mcn(base_checkpoint="nowhere.ckpt")
    with pytest.raises(ValueError, match=r"base_checkpoint='a' and backbone_weights='b': give one of them"):
        mcn(base_checkpoint="a", backbone_weights="b")


def test_weights_alone_are_told_where_to_start_from(trained):
    with pytest.raises(ValueError, match=r"weights alone.*; to start from its weights: --model\.base_checkpoint$"):
        check_resumable(trained[1], MCN)
