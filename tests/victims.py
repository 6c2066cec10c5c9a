"""Small networks that are worth an attack, and one that notes every image that it is asked about."""

import os
import signal
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.cifar import STATISTICS, read_digits
from lit_methods.backbones import BACKBONES, Backbone, build_backbone
from tests.tiny import TinyNet, register, tiny_points

MEAN, STD = STATISTICS["digits"]
NOTES, SIGNAL = "TESTS_NOTES_OF_THE_VICTIM", "TESTS_SIGNAL_TO_THE_VICTIM"  # in the environment, which forks inherit


class NotingNet(TinyNet):
    """Appends to the file ``$NOTES`` how many images it has answered for, one line per forward pass.

    With ``$SIGNAL`` such as ``SIGKILL 12`` its process gets that signal in forward pass 12, counted over all processes,
    before there is an answer, and in those that follow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        notes = Path(os.environ[NOTES])
        name, number = os.environ.get(SIGNAL, "SIGKILL inf").split()
        if len(notes.read_text().splitlines() if notes.exists() else []) >= float(number):
            os.kill(os.getpid(), signal.Signals[name])
        logits = super().forward(x)
        with notes.open("a") as file:
            file.write(f"{len(x)}\n")
        return logits


def register_victims() -> None:
    """Make the tiny networks known, ``tiny_noting`` among them."""
    register()
    BACKBONES["tiny_noting"] = Backbone(NotingNet, tiny_points)


@cache
def trained_weights(arch: str = "tiny") -> dict[str, Tensor]:
    """Of a network that knows most of the digits; half a second."""
    register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_backbone(arch, 10)
        images, labels = read_digits(train=True)
        images, labels = (images / 255 - MEAN[0]) / STD[0], torch.from_numpy(labels)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(4):
            for part in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(images[part]), labels[part]).backward()
                optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
