"""Fixtures of the tests of attacks."""

import os
import threading

import pytest

from tests.methods.label_server import Server


@pytest.fixture
def server(monkeypatch):
    """A label service on this machine; no proxy is between."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(scope="module")
def batch():
    """Digits, as ``test_step`` gets them."""
    from tests.attackers import IMAGES, digits

    data = digits(IMAGES)
    data.setup("test")
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


@pytest.fixture
def path(tmp_path):
    """Of a ledger, in a folder that is not there yet."""
    return tmp_path / "deep" / "ledger.jsonl"
