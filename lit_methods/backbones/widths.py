"""Blocks that can be narrowed from within, and the plan that tells how narrow they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_methods.backbones.kept import PlainPlan


@dataclass(frozen=True)
class Chain:
    """Convolutions of a block, one feeding the next; what flows between them can be narrowed, what comes out cannot.

    Args:
        convs: module names, in forward order; at least two.
        norms: the batch norm behind each of them but the last.
        widths: filters of each of them but the last, in the full network.

    Example:
        >>> Chain(("layer1.0.conv1", "layer1.0.conv2"), ("layer1.0.bn1",), (16,)).widths
        (16,)
    """

    convs: tuple[str, ...]
    norms: tuple[str, ...]
    widths: tuple[int, ...]


Block = tuple[Chain, ...]  # chains side by side that share one rate
MidChannels = Sequence[int | Sequence[int]]  # per block one width, or one for each convolution inside


@dataclass
class WidthPlan(PlainPlan):
    """How many channels flow inside the blocks, in plain types; what a checkpoint carries of a sketched network.

    Args:
        arch: a key of ``BACKBONES``.
        mid: convolution name -> its filters; a convolution without an entry stays as wide as it was.

    Raises:
        ValueError: a width below 1, or no whole number.

    Example:
        >>> WidthPlan("resnet20", {"layer1.0.conv1": 9}).to_dict()
        {'arch': 'resnet20', 'mid': {'layer1.0.conv1': 9}}
    """

    form = "a plan of widths has the keys 'arch' and 'mid'"
    mid: dict[str, int]

    def __post_init__(self) -> None:
        for conv, width in self.mid.items():
            if width < 1 or width != int(width):
                raise ValueError(
                    f"plan gives {conv!r} {width} filters; a convolution needs a whole number of them, at least 1"
                )
        self.mid = {conv: int(width) for conv, width in self.mid.items()}

    @classmethod
    def of_blocks(cls, arch: str, blocks: Sequence[Block], mid_channels: MidChannels) -> WidthPlan:
        """The plan for widths given block by block.

        Args:
            arch: a key of ``BACKBONES``.
            blocks: of that network, in forward order.
            mid_channels: per block the filters of its inner convolutions: one number for all of them, or one for each
                in the order of its chains (GoogLeNet: 3x3 reduce, 5x5 reduce, middle 3x3).

        Raises:
            ValueError: another number of blocks or of widths in one; a width that the layer does not have.

        Example:
            >>> block = (Chain(("a", "b", "c"), ("bn_a", "bn_b"), (8, 8)),)
            >>> WidthPlan.of_blocks("net", [block, block], [3, (2, 8)]).mid
            {'a': 2, 'b': 3}
        """
        if len(mid_channels) != len(blocks):
            raise ValueError(
                f"{arch} has {len(blocks)} blocks, mid_channels has {len(mid_channels)} entries; give one each"
            )
        mid: dict[str, int] = {}
        for block, given in zip(blocks, mid_channels, strict=True):
            inner = [(conv, n) for chain in block for conv, n in zip(chain.convs, chain.widths, strict=False)]
            widths = [given] * len(inner) if isinstance(given, int) else list(given)
            if len(widths) != len(inner):
                convs = ", ".join(conv for conv, _ in inner)
                raise ValueError(f"mid_channels entry {given} must be one number or {len(inner)}, for {convs}")
            for (conv, n), width in zip(inner, widths, strict=True):
                if not 1 <= width <= n:
                    raise ValueError(f"mid_channels gives {conv!r} {width} filters, the full network has {n}")
                if width < n:
                    mid[conv] = width
        return cls(arch, mid)
