"""The safe checkpoint beside Lightning's own, for a ResNet-50 with the momenta of SGD. Prints ratios; checks contents.

python -m pytest tests/benchmarks/test_checkpoint_benchmarks.py -m benchmark -s
"""

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch.testing import assert_close

from lit_methods.backbones import build_backbone
from lit_methods.checkpoint_io import SafeCheckpointIO, readable_size
from lit_methods.functional import archives
from lit_methods.functional.archives import check_archive
from tests.benchmarks.side_by_side import side_by_side

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def checkpoint() -> dict:
    network = build_backbone("resnet50")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()], "loops": {}}


def test_writing(checkpoint, tmp_path):
    """Ours waits until the file is on the disk, Lightning's does not; the last line leaves the waiting out."""
    theirs, ours = TorchCheckpointIO(), SafeCheckpointIO()

    def write(io, name):
        return lambda: io.save_checkpoint(checkpoint, tmp_path / name)

    side_by_side("write", write(theirs, "a.ckpt"), write(ours, "b.ckpt"), repeats=9)
    print(readable_size((tmp_path / "b.ckpt").stat().st_size))
    assert_close(ours.load_checkpoint(tmp_path / "b.ckpt"), theirs.load_checkpoint(tmp_path / "a.ckpt"), rtol=0, atol=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        side_by_side("write, no fsync", write(theirs, "a.ckpt"), write(ours, "b.ckpt"), repeats=9)


def test_reading(checkpoint, tmp_path):
    """The checksums cost one more pass over the file, once per process."""
    path = tmp_path / "a.ckpt"
    SafeCheckpointIO().save_checkpoint(checkpoint, path)

    def bare():
        return torch.load(path, map_location="cpu", weights_only=True)

    def first():
        archives._check.cache_clear()
        return SafeCheckpointIO().load_checkpoint(path)

    def checksums():
        archives._check.cache_clear()
        check_archive(path)

    reference, ours = side_by_side("read, first time", bare, first, repeats=9)
    assert_close(ours, reference, rtol=0, atol=0)
    side_by_side("read, again", bare, lambda: SafeCheckpointIO().load_checkpoint(path), repeats=9)
    side_by_side("checksums alone beside torch.load", bare, checksums, repeats=9)
