"""One architecture under one recipe through a Trainer."""

import json
import warnings

import pytest
import torch
import yaml
from torch.testing import assert_close

from datamodules import CIFARDataModule
from lit_methods import BPE
from lit_methods.bpe_mip.functional import cosine_lr
from lit_methods.bpe_mip.module import DARTS_V2, as_genotype
from lit_methods.bpe_mip.search_space import BPE1, Genotype, genotype_from_sample28
from lit_methods.cli import main
from tests.fake_trials import same_state
from tests.left_behind import metrics, read_rows, weights

RECIPE = {"preset": "BPE1", "epochs": 2, "batch_size": 64, "lr": 0.1, "layers": 3, "channels": 4, "image_size": 8}
LIGHT = " ".join(map(str, [3, 2, *[7] * 12] * 2))


def genotype() -> Genotype:
    return genotype_from_sample28([int(word) for word in LIGHT.split()])


def data(**options) -> CIFARDataModule:
    return CIFARDataModule("digits", **{"batch_size": 64, "image_size": 8, "class_subset": [0, 1, 2]} | options)


class Watch(BPE):
    """Writes down what its schedules do."""

    def on_before_optimizer_step(self, optimizer):
        now = (optimizer.param_groups[0]["lr"], float(self.model.drop_path_prob))
        self.seen = [*getattr(self, "seen", []), now]


def test_it_trains_by_its_recipe(make_trainer):
    module = Watch(genotype(), RECIPE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(max_epochs=2, limit_val_batches=0).fit(module, datamodule=data())
    assert not [one for one in caught if "differs from its recipe" in str(one.message)]
    steps = len(module.seen) // 2
    assert steps > 2
    wanted = [(cosine_lr(epoch, 2, 0.1), 0.1 * epoch) for epoch in (0, 1) for _ in range(steps)]
    assert module.seen == [pytest.approx(pair) for pair in wanted]


def test_a_run_that_is_another_than_its_recipe_says_so(make_trainer):
    module = BPE(genotype(), RECIPE)
    trainer = make_trainer(max_epochs=3, limit_val_batches=0, limit_train_batches=1)
    with pytest.warns(
        UserWarning, match=r"differs from its recipe: epochs=3 for 2, batch_size=32 for 64, cutout=2 for 0"
    ):
        trainer.fit(module, datamodule=data(batch_size=32, cutout=2))


def test_images_of_another_size_are_refused(make_trainer):
    trainer = make_trainer(max_epochs=1)
    with pytest.raises(
        ValueError, match=r"images of 32 pixels, the recipe's image_size is 8; give --data.image_size 8"
    ):
        trainer.fit(BPE(genotype(), RECIPE), datamodule=data(image_size=32))


def test_grey_images_are_refused():
    with pytest.raises(ValueError, match="repeat a grey channel three times"):
        BPE(genotype(), RECIPE)(torch.zeros(2, 1, 8, 8))


def test_the_auxiliary_head_speaks_in_training_alone():
    module = BPE(genotype(), RECIPE)
    assert module.network_output(torch.rand(2, 3, 8, 8))[1] is not None
    assert module.eval().network_output(torch.rand(2, 3, 8, 8))[1] is None


def test_a_checkpoint_brings_its_genotype_and_recipe(make_trainer, tmp_path):
    module = BPE(genotype(), RECIPE | {"channels": 6})
    trainer = make_trainer(max_epochs=1, limit_val_batches=0, limit_train_batches=1)
    trainer.fit(module, datamodule=data())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BPE.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (again.genotype, again.recipe) == (module.genotype, module.recipe)
    assert same_state(again.state_dict(), module.state_dict())
    other = BPE()
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    other.on_load_checkpoint(saved)
    other.load_state_dict(saved["state_dict"])
    assert (other.genotype, other.recipe) == (module.genotype, module.recipe)
    assert other.hparams["genotype"] == module.genotype.to_dict()


@pytest.mark.slow
def test_the_exported_graph_gives_the_same_logits():
    module = BPE(genotype(), RECIPE, mean=[0.5] * 3, std=[0.25] * 3).eval()
    (graph,) = module.export_graphs().values()
    image = torch.rand(5, 3, 8, 8)
    exported = torch.export.export(graph.module.eval(), graph.inputs, dynamic_shapes=graph.dynamic_shapes).module()
    assert_close(exported(image), module(image))


def test_resume_in_the_middle_of_an_epoch_is_bit_equal(tmp_path):
    words = ["--config", str(tmp_path / "run.yaml"), "--trainer.accelerator", "cpu"]
    (tmp_path / "run.yaml").write_text(
        f"""
trainer: {{max_epochs: 2, log_every_n_steps: 1, limit_train_batches: 3, num_sanity_val_steps: 0}}
model:
  class_path: lit_methods.BPE
  init_args: {{genotype: '{GENOTYPE}', recipe: {RECIPE}}}
data:
  class_path: datamodules.CIFARDataModule
  init_args: {{name: digits, batch_size: 64, image_size: 8, class_subset: [0, 1, 2]}}
"""
    )
    steps = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "1"]
    steps += ["--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.filename", "{step}"]
    steps += ["--trainer.callbacks.dirpath", str(tmp_path / "steps")]
    assert main("fit", [*words, *steps, "--run_dir", str(tmp_path / "a")]) == 0
    more = ["--run_dir", str(tmp_path / "b"), "--ckpt_path", str(tmp_path / "steps" / "step=4.ckpt")]
    assert main("fit", [*words, *more]) == 0
    assert_close(weights(tmp_path / "a"), weights(tmp_path / "b"), rtol=0, atol=0)
    rows = metrics(tmp_path / "b")
    assert rows == metrics(tmp_path / "a")[-len(rows) :]
    assert len(read_rows(tmp_path / "b" / "metrics.csv")) > 2


# -- what a genotype may be --------------------------------------------------------------------------------------------

GENOTYPE = json.dumps(genotype().to_dict())


def test_a_genotype_may_come_in_any_form(tmp_path):
    wanted = genotype()
    (tmp_path / "g.json").write_text(GENOTYPE)
    for given in (wanted, wanted.to_dict(), GENOTYPE, str(tmp_path / "g.json")):
        assert as_genotype(given) == wanted
    assert as_genotype(None) == DARTS_V2
    assert as_genotype(LIGHT) == wanted


def test_several_genotypes_are_refused(tmp_path):
    (tmp_path / "g.json").write_text(f"[{GENOTYPE}, {GENOTYPE}]")
    with pytest.raises(ValueError, match="has 2 genotypes; give a file with one"):
        as_genotype(str(tmp_path / "g.json"))


def test_no_such_file_is_said():
    with pytest.raises(FileNotFoundError, match=r"no_such\.json"):
        BPE("no_such.json")


def test_its_summary_names_genotype_and_recipe():
    assert BPE(genotype(), "BPE1").summary() == {"bpe/genotype": genotype().key(), "bpe/recipe": BPE1.key()}


def test_paper_scale_recipes_say_what_their_settings_are_called():
    from lit_methods.bpe_mip.search_space import FULL, PRESETS
    from tests.small_recipes import RECIPES

    full = yaml.safe_load(RECIPES["bpe_cifar10_full"].read_text("utf-8"))
    ran = full["data"]["init_args"] | {"epochs": full["trainer"]["max_epochs"]}
    assert full["model"]["init_args"]["recipe"] == "FULL"
    assert {name: ran[name] for name in ("epochs", "batch_size", "cutout", "image_size")} == {
        name: getattr(FULL, name) for name in ("epochs", "batch_size", "cutout", "image_size")
    }
    searches = [name for name in RECIPES if name.startswith(("bpe_random_", "bpe_evolution_", "bpe_reinforce_"))]
    assert len(searches) == 6
    for name in searches:
        search = yaml.safe_load(RECIPES[name].read_text("utf-8"))
        assert search["model"]["init_args"]["recipe"] == name.rpartition("_")[2].upper()
        assert search["model"]["init_args"]["recipe"] in PRESETS
        assert search["trainer"]["callbacks"][-1]["init_args"]["budget"] == 100
