"""The whole default run on all cores: files of tests side by side, where pytest-xdist is installed.

It is for ``python -m pytest`` alone. Whoever names files or tests, asks for a debugger or for output as it comes,
selects the slow ones or benchmarks (whose timings a neighbour would spoil), or says ``-n`` or ``--dist``, gets what
pytest itself does with that; ``-n 0`` is the whole run in one process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_methods.cli.environment import usable_cores

MOST_WORKERS = 8  # each worker imports torch and collects everything, which takes gigabytes and half a minute of a core
LONGEST = [  # first, so that no worker ends with one of them while the others have nothing left to do
    "test_docs.py",
    "test_recipes.py",
    "test_hrank_pruning.py",
    "test_export.py",
    "test_interruption.py",
    "test_resume.py",
    "test_attack_runs.py",
    "test_nad_runs.py",
    "test_ad_cluster_runs.py",
    "test_bpe_runs.py",
]


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Set what ``-n`` and ``--dist`` would set, before xdist reads it."""
    cores = min(int(usable_cores()), MOST_WORKERS)
    if cores > 1 and config.pluginmanager.hasplugin("xdist") and _whole_default_run(config):
        config.option.numprocesses = cores
        config.option.dist = "loadfile"  # what a module's fixtures made is made once
        config.option.loadscopereorder = False


def _whole_default_run(config: pytest.Config) -> bool:
    given = config.getoption
    worker = hasattr(config, "workerinput")
    named = config.args_source is not config.ArgsSource.TESTPATHS
    selected = given("keyword") or given("lf", False) or given("collectonly") or "not slow" not in given("markexpr")
    shows = any(given(name, False) for name in ("showfixtures", "show_fixtures_per_test", "setupplan", "setupshow"))
    alone = given("usepdb", False) or given("trace", False) or given("capture") == "no" or shows
    distributed = given("numprocesses") is not None or given("dist") != "no" or given("tx")
    return not (worker or named or selected or alone or distributed or "not benchmark" not in given("markexpr"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a worker the longest files stand first; within a file the order stays."""
    if hasattr(config, "workerinput"):
        order = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(Path(item.path).name, len(order)))
