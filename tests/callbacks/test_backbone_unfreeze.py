"""BackboneUnfreeze: what rests, from when on it learns, and that nothing wakes it before."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn

from callbacks import BackboneUnfreeze
from tests.siamban_batches import loader, pairs, sequences, siamban

STEPS, FRONT, DEEP = 2, ("conv1.", "bn1.", "layer1."), ("layer2.", "layer3.")


def backbone(module, names=("",)):
    """A copy of the weights and statistics of some parts."""
    state = module.model.backbone.state_dict()
    return {name: value.clone() for name, value in state.items() if name.startswith(names)}


def equal(one, other):
    return {name: torch.equal(value, other[name]) for name, value in one.items()}


class Watch(Callback):
    """What each batch found.

    Attributes:
        weights: of the backbone before each batch, and after the last.
        norms: whether the batch norms of the front and of the deeper stages were training.
        graphs: whether the features had a graph.
        rates: of the optimiser's groups.
    """

    def __init__(self):
        self.weights, self.norms, self.graphs, self.rates = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.weights.append(backbone(pl_module))
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_before_backward(self, trainer, pl_module, loss):
        network = pl_module.model.backbone
        self.norms.append((network.layer1[0].bn1.training, network.layer2[0].bn1.training))
        with torch.enable_grad():
            training = network.training
            self.graphs.append(network.eval()(torch.zeros(1, 3, 127, 127))[-1].requires_grad)
            network.train(training)

    def on_train_end(self, trainer, pl_module):
        self.weights.append(backbone(pl_module))


@pytest.fixture
def fitted(make_trainer):
    """A function: a fit of some epochs with a validation after each batch, and what was seen."""

    def fit(unfreeze, module=None, epochs=3, validate=True, **options):
        watch = Watch()
        module = module or siamban(levels=[2, 3], lr=0.02)
        trainer = make_trainer(
            max_epochs=epochs, val_check_interval=1, callbacks=[unfreeze, watch], gradient_clip_val=10.0, **options
        )
        given = [loader(*(pairs(seed) for seed in range(STEPS)))]
        if validate:
            given.append(loader(sequences(2)))
        trainer.fit(module, *given)
        return module, watch, trainer

    return fit


def test_the_front_stays_and_the_deeper_stages_learn_from_the_epoch_on(fitted):
    """Bit for bit, running statistics too, through a whole fit with validations in between."""
    _, watch, _ = fitted(BackboneUnfreeze(at_epoch=1))
    first, thawed, last = watch.weights[0], watch.weights[STEPS], watch.weights[-1]
    assert all(equal(first, thawed).values())
    assert watch.norms == [(False, False)] * STEPS + [(False, True)] * 2 * STEPS
    assert watch.graphs == [False] * STEPS + [True] * 2 * STEPS
    for name, same in equal(first, last).items():
        assert same == name.startswith(FRONT), name
    statistics = [name for name in first if "running" in name and name.startswith(DEEP)]
    assert len(statistics) > 10


def test_rates_of_the_backbone_are_a_part_of_the_others(fitted):
    _, watch, _ = fitted(BackboneUnfreeze(at_epoch=1, lr_factor=0.25), validate=False)
    for backbone_rate, neck, head in watch.rates:
        assert backbone_rate == pytest.approx(0.25 * neck)
        assert neck == head
    assert [row[1] for row in watch.rates[::STEPS]] == pytest.approx([0.001, 0.02, 0.00005])


def test_without_it_all_learn_from_the_start(fitted):
    _, watch, _ = fitted(Callback(), epochs=1, validate=False)
    assert not any(equal(watch.weights[0], watch.weights[-1]).values())


def test_other_layers_and_the_first_epoch(fitted):
    """``layer1`` and ``layer2`` from the start; ``layer3`` behind them rests."""
    _, watch, _ = fitted(BackboneUnfreeze(at_epoch=0, layers=["layer2", "layer1"]), epochs=1)
    for name, same in equal(watch.weights[0], watch.weights[-1]).items():
        assert same == name.startswith(("conv1.", "bn1.", "layer3.")), name


def test_a_network_without_the_last_stage_needs_no_other_arguments(fitted):
    _, watch, _ = fitted(BackboneUnfreeze(at_epoch=0), siamban(levels=[2], lr=0.02), epochs=1, validate=False)
    for name, same in equal(watch.weights[0], watch.weights[-1]).items():
        assert same == name.startswith(FRONT), name


def test_a_second_fit_of_the_same_callback_begins_with_rest(fitted):
    unfreeze, module = BackboneUnfreeze(at_epoch=1), siamban(lr=0.02)
    fitted(unfreeze, module, epochs=2, validate=False)
    assert module.model.backbone.trainable == ("layer2", "layer3")
    fitted(unfreeze, module, epochs=1, validate=False)
    assert module.model.backbone.trainable == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"at_epoch": -1}, "at_epoch=-1 must not be negative"),
        ({"lr_factor": 0}, "lr_factor=0 must be positive"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        BackboneUnfreeze(**arguments)


def test_a_stage_that_is_not_there_is_named_before_the_fit(fitted):
    with pytest.raises(ValueError, match=r"no 'layer4', but conv1, bn1, layer1, layer2, layer3"):
        fitted(BackboneUnfreeze(layers=["layer4"]))


def test_another_module_is_refused(make_trainer):
    class Other(LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(1, 1)

    with pytest.raises(ValueError, match="needs a tracker such as SiamBAN, not Other"):
        BackboneUnfreeze().setup(make_trainer(), Other(), "fit")
