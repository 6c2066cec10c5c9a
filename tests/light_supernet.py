"""DARTS' cells with operations that cost little: a network has hundreds of them, and most tests look elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from lit_methods.bpe_mip.cells import build_op


def light_op(name: str, channels: int, stride: int, affine: bool = True) -> nn.Module:
    """A point-wise convolution in place of those with several stages; the others as they are."""
    if "conv" in name:
        return nn.Conv2d(channels, channels, 1, stride, bias=False)
    return build_op(name, channels, stride, affine)


@contextmanager
def light_operations() -> Iterator[None]:
    """Supernets that are built inside have light operations; ``test_bpe_model.py`` has the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_methods.bpe_mip.supernet.build_op", light_op)
        yield
