"""Fixtures of the data modules' tests."""

import shutil

import pytest


@pytest.fixture
def company(monkeypatch):
    """``company(world, rank)``: what this process believes to be from here on; nothing is sent."""

    def make(world, rank):
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
        monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)

    return make


@pytest.fixture
def own_root(market1501_root, tmp_path):
    """A copy of the demo data that a test may change."""
    return shutil.copytree(market1501_root, tmp_path / "own data ü")
