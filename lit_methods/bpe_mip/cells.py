"""What the stand-alone network and the supernet share: operations, the place of each cell, its two inputs."""

from typing import NamedTuple

from torch import Tensor, nn

from lit_methods.backbones.darts_cells import OPERATIONS, FactorizedReduce, ReLUConvBN
from lit_methods.functional.suggestions import nearest


def build_op(name: str, channels: int, stride: int, affine: bool = True) -> nn.Module:
    """One candidate operation.

    Args:
        name: one of ``PRIMITIVES``.
        channels: in and out.
        stride: 1, or 2 to halve the size, which must be even then.
        affine: whether batch norm has parameters.

    Returns:
        (N, channels, H, W) to (N, channels, H / stride, W / stride); nothing works in place.

    Raises:
        ValueError: there is no such operation, ``stride`` is neither 1 nor 2, or ``channels`` is odd where half of them
            come from even pixels.

    Source:
        DARTS, arXiv 1806.09055, and the official code of BPE, which has batch norm behind the pools; the network for
        ImageNet in ``lit_methods.backbones`` has none there.

    Example:
        >>> [type(part).__name__ for part in build_op("avg_pool_3x3", channels=4, stride=2)]
        ['AvgPool2d', 'BatchNorm2d']
    """
    if name not in OPERATIONS:
        raise ValueError(f"name={name!r} is no operation{nearest(name, OPERATIONS)}; there are {', '.join(OPERATIONS)}")
    if stride not in (1, 2):
        raise ValueError(f"stride={stride} must be 1, or 2 to halve the size")
    if channels < 1 or (channels % 2 and stride == 2 and name == "skip_connect"):
        raise ValueError(f"channels={channels} must be at least 1, and even for skip_connect with stride 2")
    op = OPERATIONS[name](channels, stride, affine)
    return nn.Sequential(op, nn.BatchNorm2d(channels, affine=affine)) if "pool" in name else op


class CellSite(NamedTuple):
    """Where a cell stands.

    Args:
        sources: channels of the two cells before, the elder first.
        width: channels of each of the four nodes; the cell's output has four times as many.
        reduction: the cell halves the size.
        reduction_prev: the cell before did, so the elder input is twice as large.
    """

    sources: tuple[int, int]
    width: int
    reduction: bool
    reduction_prev: bool


def cell_sites(channels: int, layers: int) -> list[CellSite]:
    """The cells of a network; number ``layers // 3`` and ``2 * layers // 3`` reduce.

    Args:
        channels: of a node in the first cells; they double at each reduction, so an odd number will do.
        layers: cells, at least 3: with fewer there is no normal cell or only one reduction.

    Raises:
        ValueError: one of the two is too small.

    Example:
        >>> [site.width for site in cell_sites(channels=8, layers=6)]
        [8, 8, 16, 16, 32, 32]
        >>> cell_sites(channels=8, layers=6)[3]
        CellSite(sources=(32, 64), width=16, reduction=False, reduction_prev=True)
    """
    if channels < 1:
        raise ValueError(f"channels={channels} must be at least 1; BPE-1 has 8, the full setting 36")
    if layers < 3:
        raise ValueError(f"layers={layers} must be at least 3, so that there are normal cells and two reductions")
    reductions = (layers // 3, 2 * layers // 3)
    sites, sources, width = [], (3 * channels, 3 * channels), channels
    for i in range(layers):
        width *= 2 if i in reductions else 1
        sites.append(CellSite(sources, width, i in reductions, i - 1 in reductions))
        sources = (sources[1], 4 * width)
    return sites


def build_stem(channels: int) -> nn.Sequential:
    """The first convolution, RGB to 3 * channels maps of the same size; batch norm has parameters in every network.

    Example:
        >>> build_stem(8)[0]
        Conv2d(3, 24, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    return nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels))


def build_inputs(site: CellSite, affine: bool = True) -> tuple[nn.Module, nn.Module]:
    """What brings the outputs of the two cells before to the width and size of this one, the elder first.

    Args:
        site: of the cell.
        affine: whether batch norm has parameters.

    Example:
        >>> [type(part).__name__ for part in build_inputs(CellSite((32, 64), 16, False, reduction_prev=True))]
        ['FactorizedReduce', 'ReLUConvBN']
    """
    squeeze = FactorizedReduce if site.reduction_prev else ReLUConvBN
    elder, younger = site.sources
    return squeeze(elder, site.width, affine=affine), ReLUConvBN(younger, site.width, affine=affine)


def check_sides(images: Tensor) -> None:
    """Images whose sides can be halved twice.

    Args:
        images: (N, 3, H, W).

    Raises:
        ValueError: they cannot; an odd map does not fit the half of a reduction that reads odd pixels.

    Example:
        >>> from torch import zeros
        >>> check_sides(zeros(1, 3, 16, 18))
        Traceback (most recent call last):
        ValueError: images of (16, 18) cannot be halved twice; give sides that are multiples of 4
    """
    if any(side % 4 or not side for side in images.shape[-2:]):
        raise ValueError(
            f"images of {tuple(images.shape[-2:])} cannot be halved twice; give sides that are multiples of 4"
        )
