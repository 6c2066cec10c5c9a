"""The exported graph: it says what the module says, for batches and sentences that it was not traced with."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.exporting import export_module
from lit_methods.mcn.functional import postprocess_masks
from lit_methods.mcn.graphs import UnrolledGRU
from lit_methods.mcn.module import MCN

SIDE = 64


def grounding(**options):
    torch.manual_seed(3)
    defaults = {"hidden": 32, "dim": 16, "word_dim": 8, "max_words": 5, "input_size": [3, SIDE, SIDE]}
    module = MCN("tiny", vocabulary=["blue", "circle", "red"], **defaults | options).eval()
    nn.init.normal_(module.model.rec.weight, std=2.0)  # boxes of several sizes and confidences
    return module


def inputs(rows=3):
    return torch.rand(rows, 3, SIDE, SIDE), torch.tensor([[2, 3, 0, 0, 0], [4, 1, 3, 2, 4], [0, 0, 0, 0, 0]])[:rows]


def test_the_unrolled_gru_is_the_gru():
    gru = nn.GRU(6, 10, batch_first=True, bidirectional=True)
    unrolled = UnrolledGRU(gru)
    for rows, steps in ((1, 1), (3, 7)):
        words = torch.randn(rows, steps, 6)
        for ours, theirs in zip(unrolled(words), gru(words), strict=True):
            assert_close(ours, theirs)
    for other in (nn.GRU(6, 10, 2, batch_first=True, bidirectional=True), nn.GRU(6, 10, batch_first=True)):
        with pytest.raises(ValueError, match="gru must have one layer"):
            UnrolledGRU(other)


@pytest.mark.parametrize(
    ("mode", "mask_padding"),
    [
        ("adaptive", True),
        pytest.param("adaptive", False, marks=pytest.mark.slow),
        pytest.param("soft", False, marks=pytest.mark.slow),
        ("hard", False),
        pytest.param("none", False, marks=pytest.mark.slow),
    ],
)
def test_the_graph_says_what_the_module_says(mode, mask_padding):
    module = grounding(asnls=mode, mask_padding=mask_padding)
    image, tokens = inputs()
    with torch.no_grad():
        boxes, scores, masks = module.export_graphs()["grounding"].module(image, tokens)
        logits = module(image, tokens)["seg_logits"]
    rounded, expected_scores, expected = module.predict_rows(image, tokens, torch.tensor([[SIDE, SIDE]] * 3))
    assert_close((boxes + 0.5).floor().clamp(0, SIDE).long(), rounded, rtol=0, atol=0)
    assert_close(scores, expected_scores)
    _, probs = postprocess_masks(logits, rounded, scores, [(SIDE, SIDE)] * 3, SIDE, mode=mode)
    assert_close(masks, torch.stack(probs), rtol=1e-4, atol=1e-5)
    inside = masks > module.hparams["threshold"]
    assert (inside != torch.stack(expected)).float().mean() < 1e-3


def test_the_graph_takes_a_copy_and_leaves_the_module_as_it_is():
    module = grounding()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    graph = module.export_graphs()["grounding"]
    nn.init.zeros_(graph.module.network.rec.weight)
    assert isinstance(module.model.encoder.gru, nn.GRU)
    assert not any(isinstance(part, nn.GRU) for part in graph.module.modules())
    after = module.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_sentences_have_the_modules_own_length_and_its_words():
    image, tokens = grounding(max_words=7).export_graphs()["grounding"].inputs
    assert (tuple(image.shape), tuple(tokens.shape)) == ((2, 3, SIDE, SIDE), (2, 7))
    assert set(tokens.flatten().tolist()) == {2, 3, 4}


def test_a_module_without_words_is_not_exported():
    module = MCN("tiny", hidden=16, dim=8, word_dim=4, input_size=[3, SIDE, SIDE])
    with pytest.raises(ValueError, match="vocabulary=None: the module knows no words yet"):
        module.export_graphs()


@pytest.mark.slow
@pytest.mark.parametrize("mask_padding", [False, True])
def test_files_say_what_the_module_says(mask_padding, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    module = grounding(mask_padding=mask_padding)
    files = export_module(module, tmp_path, repeats=1)
    assert sorted(file.path.name for file in files) == ["grounding.onnx", "grounding.pt2"]
    session = onnxruntime.InferenceSession(str(tmp_path / "grounding.onnx"), providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "grounding.pt2").module()
    for rows in (1, 3):
        image, tokens = inputs(rows)
        with torch.no_grad():
            expected = module.export_graphs()["grounding"].module(image, tokens)
        for found in (session.run(None, {"image": image.numpy(), "tokens": tokens.numpy()}), program(image, tokens)):
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=1e-4, atol=1e-3)
