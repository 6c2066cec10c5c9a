"""How the detector's network wants its pixels."""

from __future__ import annotations

from torch import Tensor

from lit_methods.classification import Normalize

PIXELS = {  # mean and std of the channels that come out, in their order and range
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((104.0, 117.0, 123.0), (1.0, 1.0, 1.0)),
}


class Pixels(Normalize):
    """RGB in [0, 1] to what the network is fed with.

    Args:
        kind: ``"imagenet"``: RGB by ImageNet's mean and std, as torchvision's weights want it; ``"caffe"``: BGR from 0
            to 255 less (104, 117, 123), as DSFD has it.

    Raises:
        ValueError: another kind.

    Source:
        DSFD's official code (``"caffe"``), torchvision's weights (``"imagenet"``).

    Example:
        >>> import torch
        >>> Pixels("caffe")(torch.ones(1, 3, 1, 1)).flatten()
        tensor([151., 138., 132.])
    """

    def __init__(self, kind: str = "imagenet") -> None:
        if kind not in PIXELS:
            raise ValueError(f"pixels={kind!r} must be one of {', '.join(PIXELS)}")
        super().__init__(*map(list, PIXELS[kind]))
        self.kind = kind

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) likewise, in the network's own dtype.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].
        """
        if self.kind == "caffe":
            image = image.flip(1) * 255
        return super().forward(image)

    def extra_repr(self) -> str:
        """Which kind."""
        return self.kind
