"""Networks of a few thousand weights, with everything that pruning needs: for tests of callbacks and runs."""

from functools import partial

from torch import Tensor, nn

from lit_methods.backbones import BACKBONES, Backbone, PrunePlan, PrunePoint
from lit_methods.backbones.wiring import Channels, Wiring

WIDTHS = (8, 12, 16)


class TinyNet(nn.Module):
    """Three convolutions of stride 2, then a linear layer; with or without batch norm."""

    def __init__(self, num_classes: int = 10, plan: PrunePlan | None = None, norm: bool = True) -> None:
        super().__init__()
        wiring, stream = Wiring(plan), Channels(3)
        self.body = nn.Sequential()
        for i, width in enumerate(WIDTHS, start=1):
            conv, stream = wiring.conv(f"body.conv{i}", stream, width, kernel=3, stride=2, bias=not norm)
            self.body.add_module(f"conv{i}", conv)
            if norm:
                self.body.add_module(f"bn{i}", wiring.norm(f"body.bn{i}", stream))
            self.body.add_module(f"relu{i}", nn.ReLU())
        self.fc = wiring.linear("fc", stream, num_classes)
        self.kept_channels = wiring.finish()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.fc(self.body(x).mean((2, 3)))


def tiny_points() -> list[PrunePoint]:
    """All three convolutions, behind their ReLUs."""
    return [PrunePoint(f"body.conv{i}", str(i), f"body.relu{i}", (0, w)) for i, w in enumerate(WIDTHS, start=1)]


def register() -> None:
    """Make ``tiny`` and ``tiny_nobn`` known to ``build_backbone``."""
    BACKBONES["tiny"] = Backbone(TinyNet, tiny_points)
    BACKBONES["tiny_nobn"] = Backbone(partial(TinyNet, norm=False), tiny_points)
