"""ASFDSearch: what each half of a batch moves, one and several processes, what it refuses, what is found."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close

from callbacks import AutoFEMSearch
from lit_methods import ASFDSearch
from lit_methods.asfd.genotype import Genotype, random_genotype
from lit_methods.asfd.model import ASFD_SIZES, ASFDNet
from tests.asfd_batches import loader, unbegun, views
from tests.forked import answers_of

FEW = ["identity", "conv_1x1"]
TINY = {"size": "d0", "channels": 4, "fpn_ops": FEW, "cpm_ops": FEW, "warmup_steps": 0}


def search(**arguments):
    return ASFDSearch(**TINY | arguments)


class Halves(torch.utils.data.Dataset):
    """Batches of two halves; a datamodule as far as the module asks."""

    split_halves = True

    def __init__(self, count=2, faces=(2, 1)):
        self.batches = [{"weights": views(n, faces), "alphas": views(100 + n, faces)} for n in range(count)]


def fit(trainer, module, data=None, **more):
    data = data or Halves()
    trainer.callbacks.append(AutoFEMSearch(more.pop("warmup", 0.0)))
    trainer.fit(module, loader(*data.batches), **more)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.fixture
def quiet(make_trainer, monkeypatch):
    """Trainers of fits that draw nothing, on data of two halves."""
    monkeypatch.setattr("callbacks.report.RunReport.figure", lambda *args: None)
    for name in ("auto_fem_figure", "edge_weights_figure"):
        monkeypatch.setattr(f"callbacks.auto_fem_search.{name}", lambda *args: None)
    monkeypatch.setattr("lit_methods.asfd.module.ASFD.setup", lambda self, stage: None)  # no datamodule to ask
    return make_trainer


def clones(parameters):
    return [value.detach().clone() for value in parameters]


def moved(parameters, before):
    return [not torch.equal(value, old) for value, old in zip(parameters, before, strict=True)]


def stepped(module, learns, batch):
    """After one training step by hand."""
    (weights, alphas), (schedule,) = module.configure_optimizers()
    module.optimizers, module.lr_schedulers = lambda: [weights, alphas], lambda: schedule
    module.log, module.learns_architecture = lambda *given, **more: None, learns
    return module.training_step(batch, 0)


def by_hand(module):
    module._trainer = unbegun(10, world_size=1, progress_bar_callback=None)
    return module


# -- a step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learns", [True, False])
def test_the_architecture_moves_in_its_time_and_the_weights_always(learns):
    module = by_hand(search(partial=True))
    arch, others = module.model.arch_parameters(), module.model.weight_parameters()
    before = clones(arch), clones(others)
    stepped(module, learns, {"weights": views(0), "alphas": views(1)})
    assert set(moved(arch, before[0])) == {learns}
    assert sum(moved(others, before[1])) > 0.8 * len(others)
    assert all(value.grad is None for value in module.parameters())


def test_each_half_moves_its_own(monkeypatch):
    """Where a half has no face it moves nothing of its own, and the other half moves nothing else."""
    for empty, names in (("weights", "edge_parameters"), ("alphas", "others")):
        module = by_hand(search(weight_decay=0.0, arch_weight_decay=0.0))
        before = {name: value.detach().clone() for name, value in module.model.named_parameters()}
        stepped(module, True, {"weights": views(0), "alphas": views(1)} | {empty: views(2, (0, 0))})
        found = {name for name, value in module.model.named_parameters() if not torch.equal(value, before[name])}
        assert found
        assert {name.startswith("edge_parameters.") for name in found} == {names == "edge_parameters"}


def test_a_search_without_faces_stays_finite(quiet):
    module = search(arch_weight_decay=0.0)
    before = clones(module.model.arch_parameters())
    logged = fit(quiet(max_epochs=1), module, Halves(1, (0, 0)))
    assert logged["train/loss"] == logged["train/arch_loss"] == 0
    assert not any(moved(module.model.arch_parameters(), before))
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_gradients_of_the_weights_are_clipped():
    """By the norm over all of them; the architecture's are not."""
    norms = []
    for limit in (None, 0.001):
        torch.manual_seed(0)
        module = by_hand(search(max_norm=limit, momentum=0.0, weight_decay=0.0, lr=1.0))
        weights, arch = module.model.weight_parameters(), module.model.arch_parameters()
        before = clones(weights), clones(arch)
        stepped(module, True, {"weights": views(0), "alphas": views(1)})
        change = [now.detach() - old for now, old in zip(weights, before[0], strict=True)]
        norms.append((float(torch.cat([x.flatten() for x in change]).norm()), clones(arch)))
    assert norms[0][0] > 0.01
    assert norms[1][0] == pytest.approx(0.001, rel=1e-3)
    assert all(map(torch.equal, norms[0][1], norms[1][1]))


def test_it_logs_both_losses_and_the_entropy(quiet):
    module, trainer = search(), quiet(max_epochs=1)
    logged = fit(trainer, module, Halves(1))
    names = {"train/loss", "train/cls_loss", "train/reg_loss", "train/positives", "train/arch_loss", "search/entropy"}
    assert names <= logged.keys()
    assert logged["search/entropy"] == pytest.approx(float(torch.log(torch.tensor(len(FEW)))), abs=1e-3)
    assert trainer.global_step == 2
    assert module.summary()["search/genotype"] == module.genotype().key()


# -- several processes -------------------------------------------------------------------------------------------------

FACES = [((3, 2), (1,)), ((0, 0), (2,))]  # of the weights' half on each process, then of the architecture's


def one_step(rank, weights, folder, put):
    module = by_hand(search(momentum=0.0, weight_decay=0.0, max_norm=1.0, lr=0.1).double().eval())
    module.load_state_dict(weights)
    module._trainer.world_size, module._trainer.strategy = 2, DDPStrategy(accelerator=CPUAccelerator())
    stepped(module, True, {half: views(n, FACES[n][rank]) | doubled(n, rank) for n, half in enumerate(HALVES)})
    torch.save(module.state_dict(), folder / f"{rank}.pt")
    put(rank)


HALVES = ("weights", "alphas")


def doubled(number, rank):
    return {"image": views(number, FACES[number][rank])["image"].double()}


@pytest.mark.slow
def test_a_step_of_two_processes_is_that_of_one_on_both_batches(tmp_path):
    """Batches of other lengths, and of no face on one of them; batch norms are at rest."""
    module = by_hand(search(momentum=0.0, weight_decay=0.0, max_norm=1.0, lr=0.1).double().eval())
    assert len(answers_of(one_step, 2, tmp_path, module.state_dict(), tmp_path)) == 2
    batch = {}
    for number, half in enumerate(HALVES):
        parts = [views(number, FACES[number][rank]) for rank in range(2)]
        images = torch.cat([part["image"] for part in parts]).double()
        batch[half] = {"image": images, "boxes": [boxes for part in parts for boxes in part["boxes"]]}
    stepped(module, True, batch)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name, value in module.state_dict().items():
        assert torch.equal(found[0][name], found[1][name]), name
        assert_close(found[0][name], value, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


# -- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"genotype": random_genotype(torch.Generator().manual_seed(0)).to_dict()},
            "genotype is what ASFDSearch looks",
        ),
        ({"arch_lr": -1.0}, r"arch_lr=-1\.0 must not be negative"),
        ({"arch_weight_decay": -1.0}, r"arch_weight_decay=-1\.0"),
        ({"max_norm": 0.0}, r"max_norm=0\.0 must be positive, or null"),
        ({"size": "d9"}, r"size='d9'"),
        ({"channels": 0}, r"channels=0"),
        ({"fpn_ops": []}, r"fpn_ops=\[\]"),
        ({"cpm_ops": ["conv"]}, r"cpm_ops has an operation 'conv'"),
        ({"margin": -1.0}, r"margin=-1\.0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        search(**arguments)


def test_a_search_that_nothing_starts_is_refused(quiet):
    with pytest.raises(ValueError, match=r"AutoFEMSearch: add it to trainer\.callbacks"):
        quiet(max_epochs=1).fit(search(), loader(*Halves().batches))


def test_whole_batches_are_refused():
    module = search()
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(split_halves=False))
    with pytest.raises(ValueError, match=r"ASFDSearch needs two halves .* set data\.split_halves to true"):
        module.setup("fit")


def test_half_precision_is_refused(quiet):
    with pytest.raises(ValueError, match="16"):
        fit(quiet(max_epochs=1, precision="16-true"), search())


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_a_found_genotype_fits_every_size(shared):
    module = search(shared_cpm=shared, partial=True, fpn_ops=None, cpm_ops=None)
    with torch.no_grad():
        for value in module.model.arch_parameters():
            value.normal_()
    found = module.genotype()
    assert Genotype.from_dict(found.to_dict()) == found
    assert len(found.cpm) == (1 if shared else 6)
    for size in ASFD_SIZES:
        with torch.device("meta"):
            cls, loc = ASFDNet(size, genotype=found)(torch.empty(1, 3, 128, 160))
        assert (cls.shape, loc.shape) == ((1, 1708, 2), (1, 1708, 4))


@pytest.mark.slow
def test_twenty_steps_change_the_architecture_and_what_is_found_is_built(quiet):
    module = ASFDSearch("d0", channels=8, warmup_steps=0)
    before = {name: value.clone() for name, value in module.alphas().items()}
    fit(quiet(max_epochs=1), module, Halves(20))
    for name, value in module.alphas().items():
        assert (value != before[name]).all(), name
    net = ASFDNet("d0", genotype=module.genotype(), channels=8).eval()
    assert all(part.isfinite().all() for part in net(torch.rand(1, 3, 128, 128)))
