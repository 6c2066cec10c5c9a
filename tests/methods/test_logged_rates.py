"""Every method that the Trainer trains logs its learning rate under the same name."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lit_methods.ad_cluster.camera_stargan import CameraStarGAN
from lit_methods.ad_cluster.module import ADCluster
from lit_methods.ad_cluster.source import SourceReID
from tests.asfd_batches import asfd, views as faces
from tests.ddl_batches import batch as branches, ddl
from tests.mcn_batches import mcn, views as sentences
from tests.siamban_batches import pairs, siamban

pytestmark = pytest.mark.usefixtures("light_grounder")
PERSONS = {"encoder": "tiny", "encoder_args": {"width": 4}, "input_size": [3, 32, 16]}
FIRST, LAST = 0.5, 0.25  # rates of the optimiser's groups


def crops():
    return {
        "image": torch.rand(4, 3, 32, 16),
        "label": torch.tensor([0, 0, 1, 1]),
        "erased": torch.zeros(4, 4, dtype=torch.int64),
    }


CASES = {
    "ADCluster": (lambda: ADCluster(**PERSONS), crops, FIRST),
    "ASFD": (asfd, faces, FIRST),
    "DDL": (ddl, branches, FIRST),
    "MCN": (mcn, sentences, FIRST),
    "SiamBAN": (siamban, pairs, LAST),  # the heads', of which that of the backbone is a part
    "SourceReID": (lambda: SourceReID(**PERSONS, num_classes=2), crops, FIRST),
}


def stepped(module, batch, trainer):
    """What a training step logs."""
    found = {}
    module.trainer, module.log = trainer, lambda name, value, **_: found.update({name: value})
    trainer.optimizers = [
        SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (FIRST, LAST)], lr=1.0)
    ]
    module.training_step(batch, 0)
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_rate_is_logged_where_the_trainer_writes_a_row(name, make_trainer):
    build, batch, rate = CASES[name]
    module, one = build(), batch()
    assert stepped(module, one, make_trainer(log_every_n_steps=1))["train/lr"] == rate
    assert "train/lr" not in stepped(module, one, make_trainer(log_every_n_steps=2))


def test_a_module_that_makes_its_own_steps_logs_the_rate_of_each(make_trainer):
    small = {"generator_width": 4, "num_blocks": 1, "discriminator_width": 4, "num_layers": 3}
    module = CameraStarGAN(num_cameras=2, input_size=[3, 32, 16], lr=0.125, total_steps=4000, decay_steps=4000, **small)
    found, trainer = {}, make_trainer(max_epochs=1)
    module.trainer, module.log = trainer, lambda name, value, **_: found.update({name: value})
    module._step, optimizers = lambda batch_idx: 3000, module.configure_optimizers()
    module.optimizers = lambda: optimizers
    module.training_step({"image": torch.rand(2, 3, 32, 16), "camid": torch.tensor([0, 1])}, 0)
    assert found["train/lr"] == optimizers[0].param_groups[0]["lr"] == 0.125 / 4
