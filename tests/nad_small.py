"""Networks of a few channels with places for gates, and how many hooks hang on one."""

import torch
from torch import nn

from lit_methods.nad.gating import GatedModel

SIZE = (3, 8, 8)


class Small(nn.Module):
    """Two convolutions with batch norm, one ReLU in place; dropout before the answer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1, self.relu1 = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        self.conv2, self.norm2, self.relu2 = nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.drop, self.fc = nn.Dropout(), nn.Linear(6, 4)

    def forward(self, x):
        x = self.relu1(self.norm1(self.conv1(x)))
        return self.fc(self.drop(self.relu2(self.norm2(self.conv2(x))).mean((2, 3))))


def small(dtype=torch.float32):
    """With batch norm of some past, in eval mode."""
    network = Small().to(dtype).eval()
    for norm in (network.norm1, network.norm2):
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 2)
    return network


def gated_small(num_tasks=1, **kwargs):
    return GatedModel(small(**kwargs), ["relu1", "relu2"], num_tasks, input_size=SIZE)


def hooks_of(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def images(number=3, size=SIZE, dtype=torch.float32):
    return torch.randn(number, *size).to(dtype)


class Strange(nn.Module):
    """A network in which one thing is odd."""

    def __init__(self, what):
        super().__init__()
        self.what, self.conv, self.odd, self.fc = what, nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, 2)
        self.unused = nn.ReLU()

    def forward(self, x):
        x = self.conv(x)
        if self.what == "twice":
            x = self.odd(self.odd(x))
        if self.what == "triple":
            self.odd(x.flatten(2))
        if self.what == "pair":
            self.odd((x, x))
        x = x.mean((2, 3))
        return {"maps": x[:, :, None], "tuple": (self.fc(x), x)}.get(self.what, self.fc(x))
