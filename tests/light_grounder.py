"""A backbone for MCN that costs little: most tests look at what is made of its maps."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lit_methods.mcn.darknet import DarkNet53
from lit_methods.mcn.model import MCN_BACKBONES


def light_darknet() -> DarkNet53:
    """Twelve narrow convolutions in place of the 22 of ``tiny``, with a fiftieth of their weights."""
    return DarkNet53(width=1 / 64, depths=(0, 0, 0, 0, 0), least=8)


@contextmanager
def light_backbone() -> Iterator[None]:
    """``tiny`` is the light one inside; ``test_mcn_model.py`` has the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MCN_BACKBONES, "tiny", light_darknet)
        yield
