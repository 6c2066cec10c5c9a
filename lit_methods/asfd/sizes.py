"""What D0 to D6 are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_methods.functional.suggestions import nearest


@dataclass(frozen=True)
class Size:
    """One row of ``ASFD_SIZES``.

    Args:
        backbone: as ``features.build_features`` calls it.
        channels: W, of the feature module and the heads.
        repeats: of the feature module, one behind the other.
        convs: of each branch of the head in front of its prediction.
        ops: of the default genotype: ``"separable"`` or ``"full"``.
    """

    backbone: str
    channels: int
    repeats: int
    convs: int
    ops: Literal["separable", "full"]


ASFD_SIZES: dict[str, Size] = {
    "d0": Size("mobilenet_v1_x025", 56, 1, 0, "separable"),
    "d1": Size("mobilenet_v1_x100", 64, 1, 0, "separable"),
    "d2": Size("resnet18", 64, 1, 1, "full"),
    "d3": Size("resnet34", 96, 1, 1, "full"),
    "d4": Size("resnet50", 128, 1, 2, "full"),
    "d5": Size("resnet101", 160, 2, 2, "full"),
    "d6": Size("resnet152", 192, 2, 3, "full"),
}
"""The family: which backbone, how wide, how deep.

Measured with the default genotype for one image of 640 x 480; parameters include batch norms and biases, multiply-adds
are those of convolutions.

====  ==============  =================  ======================================
size  parameters (M)  multiply-adds (G)  published, by a secondary source
====  ==============  =================  ======================================
d0             0.469              0.775  0.62 M, 0.73 G
d1             4.047              4.385  3.9 M, 4.27 G
d2            12.536             17.026
d3            24.070             35.559
d4            30.651             56.771
d5            58.302            120.466
d6            80.701            191.712
====  ==============  =================  ======================================

Source:
    Section 2.4 of ASFD's specification, a decision of the project: the paper says that backbone, feature modules and
    head are scaled together, and that D0 uses a MobileNet.
"""


def find_size(size: str) -> Size:
    """The row of a size.

    Args:
        size: ``"d0"`` to ``"d6"``.

    Raises:
        ValueError: there is no such size.

    Example:
        >>> find_size("d0").channels
        56
    """
    if size not in ASFD_SIZES:
        raise ValueError(f"size={size!r} is none{nearest(size, ASFD_SIZES)}; there are {', '.join(ASFD_SIZES)}")
    return ASFD_SIZES[size]
