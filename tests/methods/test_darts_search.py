"""DARTSSearch as a module: its two steps, its rates, what it refuses; and the callback that shows the cells."""

import json
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningModule
from torch.testing import assert_close

from callbacks import GenotypeLogger
from datamodules import CIFARDataModule
from lit_methods import BPE, DARTSSearch
from lit_methods.bpe_mip.cells import build_op
from lit_methods.bpe_mip.darts_search import _check_precision
from lit_methods.bpe_mip.search_space import Genotype, named_recipe, parse_alpha
from lit_methods.cli.recipes import find_recipes
from tests.light_supernet import light_operations

TINY = {"preset": "BPE1", "epochs": 4, "batch_size": 6, "lr": 0.1, "layers": 3, "channels": 4, "image_size": 8}
STATISTICS = {"mean": [0.3] * 3, "std": [0.4] * 3}


def half(n: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.rand(n, 3, 8, 8, generator=generator), "label": torch.arange(n) % 10}


def batch(n: int = 6) -> dict[str, dict[str, torch.Tensor]]:
    return {"weights": half(n, 1), "alphas": half(n, 2)}


@pytest.fixture(autouse=True)
def _light() -> Iterator[None]:
    with light_operations():
        yield


@pytest.fixture
def steps(make_trainer):
    """Fits a module on these batches, with the Trainer's own loops."""

    def run(module: LightningModule, *batches, epochs: int = 1, **kwargs) -> LightningModule:
        trainer = make_trainer(max_epochs=epochs, precision="64-true", **kwargs)
        trainer.fit(module, torch.utils.data.DataLoader(list(batches), batch_size=None))
        return module

    return run


def state(module) -> dict[str, torch.Tensor]:
    return {name: value.detach().double().clone() for name, value in module.model.state_dict().items()}


def test_a_step_moves_alphas_by_adam_then_the_weights_by_sgd_at_the_new_alphas(steps):
    module = DARTSSearch(TINY, unrolled=False, arch_lr=0.01, **STATISTICS)
    ours = DARTSSearch(TINY, unrolled=False, **STATISTICS).double()
    ours.model.load_state_dict(state(module))
    net, fed = ours.model, ours.normalize
    one = {name: part | {"image": part["image"].double()} for name, part in batch().items()}

    adam = torch.optim.Adam(net.arch_parameters(), 0.01, betas=(0.5, 0.999), weight_decay=1e-3)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    loss = F.cross_entropy(net(fed(one["alphas"]["image"])), one["alphas"]["label"])
    loss.backward(inputs=net.arch_parameters())  # first order is plain autograd
    adam.step()
    net.load_state_dict(buffers, strict=False)  # the alphas' batch leaves no trace in running statistics
    sgd = torch.optim.SGD(net.weight_parameters(), 0.1, momentum=0.9, weight_decay=3e-4)
    loss = F.cross_entropy(net(fed(one["weights"]["image"])), one["weights"]["label"])
    loss.backward(inputs=net.weight_parameters())
    torch.nn.utils.clip_grad_norm_(net.weight_parameters(), 5)
    sgd.step()

    before = state(module)
    steps(module, one)
    assert_close(state(module), state(ours), rtol=0, atol=1e-9)
    assert all((state(module)[name] - before[name]).abs().max() > 0.009 for name in before if "alphas" in name)


def test_the_unrolled_step_is_that_of_the_architecture_gradient(steps, monkeypatch):
    calls = []

    def note(net, train_batch, val_batch, **options):
        calls.append((train_batch[0], val_batch[0], options))
        net(train_batch[0]), net(val_batch[0])
        return [torch.ones_like(alpha) for alpha in net.arch_parameters()]

    monkeypatch.setattr("lit_methods.bpe_mip.darts_search.architecture_gradient", note)
    module, one = DARTSSearch(TINY, **STATISTICS), batch()
    before = module.alphas()
    steps(module, one)
    ((train, val, options),) = calls
    assert_close(train, (one["weights"]["image"].double() - 0.3) / 0.4)
    assert_close(val, (one["alphas"]["image"].double() - 0.3) / 0.4)
    assert options["unrolled"]
    assert options["xi"] == 0.1
    assert isinstance(options["optimizer"], torch.optim.SGD)
    assert_close(module.alphas(), before.double() - 3e-4, rtol=0, atol=1e-5)  # Adam's first step is its rate


@pytest.mark.parametrize("unrolled", [False, True])
def test_the_losses_that_are_logged(make_trainer, unrolled):
    module, one = DARTSSearch(TINY | {"lr": 1e-9}, unrolled=unrolled, **STATISTICS), batch()
    first = module.model(module.normalize(one["alphas"]["image"]))
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, torch.utils.data.DataLoader([one], batch_size=None))
    logged = trainer.callback_metrics
    assert_close(logged["train/arch_loss"], F.cross_entropy(first, one["alphas"]["label"]).detach())
    assert logged["train/loss"] != logged["train/arch_loss"]
    assert logged["train/lr"] == pytest.approx(1e-9)


@pytest.mark.slow
def test_steps_by_the_alphas_half_lower_its_loss(steps):
    """By gradients of the right sign and order; the weights stand still."""
    module = DARTSSearch(TINY | {"lr": 1e-9}, unrolled=False, arch_lr=0.1, arch_weight_decay=0)
    one = {name: part | {"image": part["image"].double()} for name, part in batch().items()}

    def loss() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(module.model.train()(one["alphas"]["image"]), one["alphas"]["label"]))

    module.double()
    before = loss()
    steps(module, *[one] * 5)
    assert loss() < before - 0.01


def test_rates_fall_along_the_cosine_by_epochs(steps):
    rates = []

    class Noting(DARTSSearch):
        def _step_alphas(self, *args):
            *_, optimizers, xi = args
            rates.append((xi, optimizers[0].param_groups[0]["lr"], optimizers[1].param_groups[0]["lr"]))
            return torch.tensor(0.0)

        def _step_weights(self, *args):
            return torch.tensor(0.0)

    steps(Noting(TINY), batch(), batch(), epochs=4)
    expected = [0.001 + 0.099 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4) for _ in range(2)]
    assert [xi for xi, _, _ in rates] == pytest.approx(expected, rel=1e-12)
    assert [lr for _, lr, _ in rates] == [xi for xi, _, _ in rates]
    assert {lr for _, _, lr in rates} == {3e-4}


def test_a_small_rate_does_not_rise(make_trainer):
    module = DARTSSearch(TINY | {"lr": 5e-4})
    module.trainer = make_trainer(max_epochs=4)
    module.trainer.fit_loop.epoch_progress.current.processed = 3
    module.trainer.fit_loop.epoch_progress.current.completed = 3
    assert module.current_lr() == 5e-4


def test_optimizers_share_no_parameter_and_leave_none_out():
    module = DARTSSearch(TINY)
    sgd, adam = ({id(p) for group in o.param_groups for p in group["params"]} for o in module.configure_optimizers())
    assert not sgd & adam
    assert adam == {id(alpha) for alpha in module.model.arch_parameters()}
    assert sgd | adam == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("empty", ["weights", "alphas"])
def test_an_empty_half_is_no_step(steps, empty):
    module = DARTSSearch(TINY)
    before = state(module)
    steps(module, batch() | {empty: half(0, 1)})
    assert_close(state(module), before, rtol=0, atol=0)


@pytest.mark.slow
def test_halves_may_have_different_lengths(steps):
    module = DARTSSearch(TINY)
    before = module.alphas()
    one = batch() | {"alphas": half(3, 2)}
    steps(module, {name: part | {"image": part["image"].double()} for name, part in one.items()})
    assert module.alphas().isfinite().all()
    assert not torch.equal(module.alphas(), before.double())


def digits(**kwargs) -> CIFARDataModule:
    return CIFARDataModule("digits", batch_size=6, **{"image_size": 8, "split_halves": True} | kwargs)


@pytest.mark.parametrize(
    ("data", "options", "said"),
    [
        (digits(split_halves=False), {}, "data.split_halves true"),
        (digits(image_size=16), {}, "--data.image_size 8"),
        (digits(), {"precision": "bf16-true"}, "precision=bf16-true"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(make_trainer, data, options, said):
    with pytest.raises(ValueError, match=said):
        make_trainer(max_epochs=4, **options).fit(DARTSSearch(TINY), datamodule=data)


def test_a_scaled_loss_is_refused():
    with pytest.raises(ValueError, match="take bf16-mixed"):
        _check_precision("16-mixed")


def test_a_batch_without_halves_is_refused(make_trainer):
    loader = torch.utils.data.DataLoader([half(6, 0)], batch_size=None)
    with pytest.raises(ValueError, match=r"image, label in place of weights and alphas.*split_halves true"):
        make_trainer(max_epochs=1).fit(DARTSSearch(TINY), loader)


@pytest.mark.parametrize("name", ["arch_lr", "arch_weight_decay"])
def test_arguments_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        DARTSSearch(TINY, **{name: -1})


def test_a_run_unlike_its_recipe_says_so_once(make_trainer):
    module = DARTSSearch(TINY)
    module.trainer = make_trainer(max_epochs=3)
    module.trainer.datamodule = digits(cutout=2)
    with pytest.warns(UserWarning, match="epochs=3 for 4, cutout=2 for 0"):
        module.setup("fit")


def test_the_summary_counts_identities_of_the_normal_cell():
    module = DARTSSearch(TINY)
    for alphas, best in ((module.model.normal_alphas, 2), (module.model.reduce_alphas, 3)):
        for alpha in alphas:
            alpha.data[:, best] = 1
    module.model.normal_alphas[0].data[0] = torch.tensor([0, 0, 0, 0, 9, 0, 0, 99.0])  # "none" is not decoded
    summary = module.summary()
    assert summary["darts/skip_connects"] == 7
    assert summary["darts/genotype"] == module.genotype().key()
    assert summary["darts/genotype"].startswith("42")


@pytest.mark.slow
def test_bfloat16_leaves_the_architecture_gradient_alone(make_trainer, monkeypatch):
    seen = []

    def note(net, train_batch, val_batch, **options):
        seen.append(net(val_batch[0]).dtype)
        net(val_batch[0])
        return [torch.zeros_like(alpha) for alpha in net.arch_parameters()]

    monkeypatch.setattr("lit_methods.bpe_mip.darts_search.architecture_gradient", note)
    loader = torch.utils.data.DataLoader([batch()], batch_size=None)
    make_trainer(max_epochs=1, precision="bf16-mixed").fit(DARTSSearch(TINY), loader)
    assert seen == [torch.float32]


def test_a_checkpoint_rebuilds_the_search(make_trainer, tmp_path):
    module = DARTSSearch(TINY, unrolled=False)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module, torch.utils.data.DataLoader([batch()], batch_size=None))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = DARTSSearch.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.recipe == module.recipe
    assert not again.hparams["unrolled"]
    assert again.genotype() == module.genotype()
    predictions = again.eval().predict_step(half(2, 5), 0)
    assert [len(p["labels"]) for p in predictions] == [5, 5]


@pytest.mark.slow
def test_a_test_takes_the_recipe_of_the_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1)
    trainer.fit(DARTSSearch(TINY, unrolled=False), torch.utils.data.DataLoader([batch()], batch_size=None))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = DARTSSearch(TINY | {"channels": 5})
    loader = torch.utils.data.DataLoader([half(6, 0)], batch_size=None)
    make_trainer().test(other, loader, ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)
    assert other.recipe.channels == 4
    assert other.genotype() == trainer.lightning_module.genotype()


@pytest.mark.slow
def test_the_supernet_leaves_python(monkeypatch):
    monkeypatch.setattr("lit_methods.bpe_mip.supernet.build_op", build_op)  # with the real operations
    module = DARTSSearch(TINY).eval()
    graph = module.export_graphs()["classifier"]
    program = torch.export.export(graph.module.eval(), graph.inputs, dynamic_shapes=graph.dynamic_shapes)
    images = half(3, 4)["image"]
    assert_close(program.module()(images), module(images), rtol=0, atol=1e-5)


# -- GenotypeLogger ----------------------------------------------------------------------------------------------------


class Searching(LightningModule):
    """Favours another operation in every epoch, and is best in epoch 1."""

    accuracies = (0.2, 0.6, 0.6, 0.1)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/top1", self.accuracies[self.current_epoch])

    def test_step(self, batch, batch_idx):
        self.log("test/top1", 0.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def alphas(self):
        return F.one_hot(torch.full((28,), self.current_epoch), 8)

    def genotype(self):
        return parse_alpha(self.alphas())


@pytest.mark.usefixtures("no_figures")
def test_the_best_epoch_is_written_at_the_end_of_a_fit_and_what_is_tested_after_a_test(make_trainer, tmp_path):
    loader = torch.utils.data.DataLoader([torch.zeros(1)], batch_size=None)
    module, logger = Searching(), GenotypeLogger()
    trainer = make_trainer(max_epochs=4, callbacks=[logger])
    trainer.fit(module, loader, loader)
    written = Genotype.from_dict(json.loads((tmp_path / "genotype.json").read_text()))
    assert written.normal[3] == (("avg_pool_3x3", 0), ("avg_pool_3x3", 1))  # of epoch 1, the first of two equals
    header, *rows = (tmp_path / "tables" / "darts_genotypes.csv").read_text().splitlines()
    assert header == "epoch,val/top1,genotype"
    epochs, accuracies, keys = zip(*(row.split(",") for row in rows), strict=True)
    assert epochs == ("0", "1", "2", "3")
    assert [float(value) for value in accuracies] == pytest.approx([0.2, 0.6, 0.6, 0.1])
    assert [key[:2] for key in keys] == ["00", "11", "22", "33"]
    torch.save(logger.state_dict(), tmp_path / "state.pt")  # nothing but plain types
    again = GenotypeLogger()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.history == logger.history
    trainer.test(module, loader, verbose=False)
    tested = Genotype.from_dict(json.loads((tmp_path / "genotype.json").read_text()))
    assert tested == module.genotype() != written


def test_modules_without_a_search_are_refused(make_trainer):
    with pytest.raises(ValueError, match="such as DARTSSearch, not for BPE"):
        make_trainer(callbacks=[GenotypeLogger()]).validate(BPE(recipe=TINY), [half(2, 0)])


def test_the_interval_must_be_positive():
    with pytest.raises(ValueError, match="every_n_epochs=0"):
        GenotypeLogger(every_n_epochs=0)


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in find_recipes() if name.startswith("bpe_darts")])
def test_packaged_recipes_run_what_their_bpe_recipe_says(name):
    config = yaml.safe_load(find_recipes()[name].read_text())
    recipe = named_recipe(config["model"]["init_args"]["recipe"])
    data = config["data"]["init_args"]
    assert (data["batch_size"], data["image_size"]) == (recipe.batch_size, recipe.image_size)
    assert config["trainer"]["max_epochs"] == recipe.epochs
    assert data["split_halves"]
