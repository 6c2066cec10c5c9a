"""Whether the warning signal of a SLURM job is listened to."""

import signal

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.demos.boring_classes import BoringModel

from callbacks import Interruption


@pytest.mark.parametrize(
    ("environment", "requeue", "listens"),
    [
        (SLURMEnvironment(), True, True),
        (SLURMEnvironment(), False, False),
        (SLURMEnvironment(auto_requeue=False), True, False),
        (LightningEnvironment(), True, False),
    ],
)
def test_in_jobs_that_requeue_themselves(make_trainer, environment, requeue, listens):
    trainer, callback, before = make_trainer(), Interruption(requeue), signal.getsignal(signal.SIGUSR1)
    trainer._accelerator_connector.cluster_environment = environment
    callback.setup(trainer, BoringModel(), "fit")
    try:
        assert (signal.getsignal(signal.SIGUSR1) != before) == listens
        assert signal.getsignal(signal.SIGTERM) != before
    finally:
        callback.teardown(trainer, BoringModel(), "fit")
    assert signal.getsignal(signal.SIGUSR1) == before
