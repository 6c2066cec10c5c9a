"""Start-up: the list and the help against what every other command has to import."""

import subprocess
import sys
import time

import pytest


def seconds(*words: str) -> float:
    """The best of five, since other processes only add."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=False)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.benchmark
def test_startup():
    lightning = seconds("-c", "import lightning.pytorch")
    print(f"\nimport lightning.pytorch      {lightning:6.2f} s")
    for word in ("--list", "--help", "no_such_recipe"):
        own = seconds("-m", "lit_methods.fit", word)
        print(f"lit_methods.fit {word:14}{own:6.2f} s, {lightning / own:.0f} times as fast")
        assert own < 0.5
