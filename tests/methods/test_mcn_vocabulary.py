"""The words of a module: learnt from the data, kept in checkpoints, taken by other data, of a file or trained."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_methods import MCN
from tests.mcn_batches import WORDS, asked, mcn
from tests.refer_data import REFS, ready, write_refer

TRAINED = ["blue", "dog", "in", "left", "man", "red", "shirt", "the"]  # words of the training sentences
pytestmark = pytest.mark.usefixtures("light_grounder")
GLOVE = {"the": [0, 1, 0], "red": [1, 0, 0], "man": [0, 0, 2], "dog": [0, 0, -2], "zebra": [3, 1, 1]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_refer(tmp_path_factory.mktemp("refer"))


@pytest.fixture(scope="module")
def other_root(tmp_path_factory):
    """Another data set, whose own words would have other numbers."""
    told = {"train": ["a zebra", "an apple"], "testA": ["red zebra", "the man"]}
    refs = [
        {"image": ref["image"], "split": ref["split"], "told": told[ref["split"]]}
        for ref in REFS
        if ref["split"] in told
    ]
    return write_refer(tmp_path_factory.mktemp("other"), refs)


@pytest.fixture(scope="module")
def glove(tmp_path_factory):
    path = tmp_path_factory.mktemp("glove") / "glove.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in GLOVE.items()))
    return str(path)


def learner(**arguments):
    return mcn(**{"vocabulary": None} | arguments)


def fit(make_trainer, module, data, **more):
    trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, **more)
    trainer.fit(module, datamodule=data)
    return trainer


def kept(trainer_in, module, data, folder):
    """A checkpoint of a short fit, and the module that wrote it."""
    torch.manual_seed(0)
    fit(partial(trainer_in, folder), module, data).save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt", module


@pytest.fixture(scope="module")
def trained(trainer_in, root, tmp_path_factory):
    """Without a file of vectors. Do not change the module."""
    return kept(trainer_in, learner(), ready(root), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def frozen(trainer_in, root, glove, tmp_path_factory):
    """With one. Do not change the module."""
    return kept(trainer_in, learner(word_dim=3), ready(root, glove=glove), tmp_path_factory.mktemp("frozen"))


# -- learnt from the data ----------------------------------------------------------------------------------------------


def test_words_are_those_of_the_training_sentences(trained):
    path, module = trained
    assert module.hparams["vocabulary"] == TRAINED
    assert module.ids == {word: number for number, word in enumerate(TRAINED, 2)}
    assert module.hparams["train_words"] is True
    assert module.words.weight.shape == (2 + len(TRAINED), 8)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["vocabulary"] == TRAINED


def test_a_checkpoint_brings_its_words(trained):
    path, module = trained
    again = MCN.load_from_checkpoint(path, weights_only=True).eval()
    assert again.ids == module.ids
    assert torch.equal(again.words.weight, module.words.weight)
    batch = asked()
    tokens = again.tokens_of(["red dog", "the man left", "zebra dog", ""])
    assert torch.equal(tokens, module.tokens_of(["red dog", "the man left", "zebra dog", ""]))
    with torch.no_grad():
        ours, theirs = (each(batch["image"], tokens) for each in (again, module.eval()))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_words_are_drawn_by_the_seed_alone(make_trainer, root):
    """However many numbers the networks before them took: processes seed anew after those."""
    tables = []
    for drawn in (0, 5):
        torch.manual_seed(3)
        torch.rand(drawn)
        module = learner()
        module.set_vocabulary(TRAINED)
        tables.append(module.words.weight)
    assert torch.equal(*tables)
    torch.manual_seed(4)
    module.set_vocabulary(TRAINED)
    assert not torch.equal(module.words.weight, tables[0])


def test_only_said_words_move(make_trainer, root):
    module = learner()
    torch.manual_seed(0)
    fit(make_trainer, module, ready(root, seed=1))
    moved = module.words.weight.detach().clone()
    module.set_vocabulary(TRAINED)  # drawn again
    same = (moved == module.words.weight).all(1)
    assert same[:2].all()  # padding and unknown words
    assert not same[2:].all()


def test_padding_and_unknown_words_have_no_vector():
    module = mcn()
    vectors, mask = module.embedded(torch.tensor([[3, 1, 0, 0]]))
    assert vectors[0, 0].abs().sum() > 0
    assert vectors[0, 1:].abs().sum() == 0
    assert mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("words", "vectors", "text"),
    [(["red", "red"], None, r"'red'"), (["red"], torch.zeros(2, 8), r"vectors must be \(3, 8\)")],
)
def test_words_that_cannot_be_known_are_refused(words, vectors, text):
    module = mcn()
    with pytest.raises(ValueError, match=text):
        module.set_vocabulary(words, vectors)
    assert list(module.ids) == WORDS  # as before


# -- vectors of a file -------------------------------------------------------------------------------------------------


def test_vectors_of_a_file_stay_as_they_are(frozen):
    """And are those of all words of the data that the file has."""
    _, module = frozen
    assert module.hparams["vocabulary"] == ["dog", "man", "red", "the", "zebra"]
    assert module.hparams["train_words"] is False
    assert not module.words.weight.requires_grad
    expected = torch.tensor([[0.0, 0, 0], [0, 0, 0], *(GLOVE[word] for word in module.hparams["vocabulary"])])
    assert torch.equal(module.words.weight, expected)
    held = {id(p) for group in module.optimizers().param_groups for p in group["params"]}
    assert id(module.words.weight) not in held


def test_vectors_of_a_file_are_trained_where_asked(make_trainer, root, glove):
    module = learner(word_dim=3, train_words=True)
    fit(make_trainer, module, ready(root, glove=glove))
    moved = module.words.weight.detach()[2:] - torch.tensor([GLOVE[word] for word in module.hparams["vocabulary"]])
    assert moved.abs().max() > 0
    assert moved.abs().max() < 0.1


def test_words_of_a_checkpoint_with_a_file_are_still_frozen(frozen):
    path, _ = frozen
    again = MCN.load_from_checkpoint(path, weights_only=True)
    assert again.hparams["train_words"] is False
    assert not again.words.weight.requires_grad


def test_vectors_of_another_size_are_told(make_trainer, root, glove):
    with pytest.raises(ValueError, match=r"word_dim=8, but the vectors of data\.glove have 3 .* set model\.word_dim 3"):
        fit(make_trainer, learner(), ready(root, glove=glove))


# -- other data --------------------------------------------------------------------------------------------------------


def found_in(make_trainer, module, data):
    """The ids that the module was shown, and what they mean to it."""
    shown = []

    class Look(MCN):
        def test_step(self, batch, batch_idx):
            shown.extend(zip(batch["sentence"], batch["tokens"].tolist(), strict=True))
            return super().test_step(batch, batch_idx)

    module.__class__ = Look
    make_trainer().test(module, datamodule=data, verbose=False)
    module.__class__ = MCN
    names = {number: word for word, number in module.ids.items()} | {1: "?"}
    return {sentence: " ".join(names[number] for number in row if number) for sentence, row in shown}


def test_other_data_take_the_numbers_of_the_module(make_trainer, trained, other_root):
    path, module = trained
    data = ready(other_root, "test")
    assert data.vocabulary != module.hparams["vocabulary"]
    again = MCN.load_from_checkpoint(path, weights_only=True)
    assert found_in(make_trainer, again, data) == {"red zebra": "red ?", "the man": "the man"}
    assert data.vocabulary == module.hparams["vocabulary"] == again.hparams["vocabulary"]
    assert torch.equal(again.words.weight, module.words.weight)


def test_a_test_with_the_file_knows_words_that_the_fit_did_not(make_trainer, root, other_root, glove, tmp_path):
    """A frozen vector means the same, whoever says it."""
    module = learner(word_dim=3)
    short = tmp_path / "short.txt"
    short.write_text("the 0 1 0\nred 1 0 0\n")
    fit(make_trainer, module, ready(root, glove=str(short)))
    assert module.hparams["vocabulary"] == ["red", "the"]
    before = module.words.weight.clone()
    assert found_in(make_trainer, module, ready(other_root, "test", glove=glove)) == {
        "red zebra": "red zebra",
        "the man": "the man",
    }
    assert torch.equal(module.words.weight[:4], before)
    assert module.words.weight[module.ids["zebra"]].tolist() == GLOVE["zebra"]


def test_trained_words_do_not_mix_with_those_of_a_file(trained):
    _, module = trained
    with pytest.raises(ValueError, match="the vectors of this checkpoint were trained with it"):
        module.add_words(["zebra"], torch.zeros(1, 8))


def test_sentences_that_the_data_cut_elsewhere_are_refused(make_trainer, trained, other_root):
    path, _ = trained
    module = MCN.load_from_checkpoint(path, weights_only=True)
    with pytest.raises(ValueError, match=r"data\.max_words=5, but the module was trained with 4"):
        make_trainer().test(module, datamodule=ready(other_root, "test", max_words=5), verbose=False)


# -- resumed -----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_words_when_the_data_have_others(make_trainer, trained, root, tmp_path):
    path, module = trained
    new = [*REFS, {"image": 4, "split": "train", "told": ["a small apple"]}]
    data = ready(write_refer(tmp_path / "more", new))
    assert len(data.vocabulary) > len(TRAINED)
    again = learner()
    trainer = make_trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(again, datamodule=data, ckpt_path=path, weights_only=True)
    assert trainer.current_epoch == 2
    assert again.hparams["vocabulary"] == TRAINED == data.vocabulary
    # a step of Adam is at most about the rate
    assert_close(again.words.weight, module.words.weight, rtol=0, atol=0.02)
    assert not torch.equal(again.words.weight, module.words.weight)


def test_given_words_are_not_replaced_by_those_of_the_data(make_trainer, root):
    module = learner(vocabulary=["man", "red"])
    data = ready(root)
    fit(make_trainer, module, data)
    assert data.vocabulary == ["man", "red"] == module.hparams["vocabulary"]
