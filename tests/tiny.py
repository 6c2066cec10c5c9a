"""Networks of a few thousand weights, with everything that pruning needs: for tests of callbacks and runs."""

from functools import partial

from torch import Tensor, nn

from lit_methods.backbones import BACKBONES, Backbone, Block, Chain, Plan, PrunePoint
from lit_methods.backbones.wiring import Channels, Wiring

WIDTHS = (8, 12, 16)
DEEP = (16, 12, 8, 16, 24, 16)  # three pairs of convolutions


class TinyNet(nn.Module):
    """Convolutions of stride 2, then a linear layer; with or without batch norm."""

    def __init__(
        self, num_classes: int = 10, plan: Plan | None = None, norm: bool = True, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        wiring, stream = Wiring(plan), Channels(3)
        self.body = nn.Sequential()
        for i, width in enumerate(widths, start=1):
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


def tiny_points(widths: tuple[int, ...] = WIDTHS) -> list[PrunePoint]:
    """All convolutions, behind their ReLUs."""
    return [PrunePoint(f"body.conv{i}", str(i), f"body.relu{i}", (0, w)) for i, w in enumerate(widths, start=1)]


def tiny_blocks(widths: tuple[int, ...] = WIDTHS, length: int = 3) -> list[Block]:
    """Chains of ``length`` convolutions each; without batch norm there is nothing behind the norms' names."""
    blocks: list[Block] = []
    for first in range(1, len(widths) + 1, length):
        places = range(first, first + length)
        convs, norms = (tuple(f"body.{kind}{i}" for i in places) for kind in ("conv", "bn"))
        blocks.append((Chain(convs, norms[:-1], widths[first - 1 : first + length - 2]),))
    return blocks


def register() -> None:
    """Make ``tiny``, ``tiny_nobn`` and ``tiny_deep`` known to ``build_backbone``."""
    BACKBONES["tiny"] = Backbone(TinyNet, tiny_points, inner_blocks=tiny_blocks)
    BACKBONES["tiny_nobn"] = Backbone(partial(TinyNet, norm=False), tiny_points, inner_blocks=tiny_blocks)
    BACKBONES["tiny_deep"] = Backbone(
        partial(TinyNet, widths=DEEP), partial(tiny_points, DEEP), inner_blocks=partial(tiny_blocks, DEEP, 2)
    )
