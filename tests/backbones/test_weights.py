"""Weights that do not fit: what the refusal says. What fits is tested with the classifier that loads it."""

import pytest
import torch

from lit_methods.backbones import build_backbone
from lit_methods.backbones.weights import load_weights


def test_a_long_table_is_cut():
    network = build_backbone("resnet20")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = {"conv1.weight": torch.zeros(16, 1, 3, 3), "head.bias": torch.zeros(10)}
    with pytest.raises(ValueError, match=r"^old\.pth does not fit this CifarResNet: .*\n") as error:
        load_weights(network, tensors, "old.pth")
    _, *rows, last = str(error.value).splitlines()
    assert len(rows) == 30
    assert rows[0].split() == ["conv1.weight", "file", "(16,", "1,", "3,", "3)", "network", "(16,", "3,", "3,", "3)"]
    missing = [key for key in before if "num_batches" not in key and key != "conv1.weight"]
    assert last == f"  ... and {2 + len(missing) - 30} more"
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
