"""SimilarityHistogramLogger and DDLWarmup: what is collected, what is reported, and resumed runs."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from callbacks import DDLWarmup, SimilarityHistogramLogger
from callbacks.similarity_histogram_logger import joint, overlaps
from lit_methods import DDLComparison, ImageClassifier
from lit_methods.ddl.overlap import similarity_overlap
from tests.ddl_batches import CLASSES, SIDE, batch, ddl
from tests.left_behind import read_rows


def loader(*batches):
    return DataLoader(batches, batch_size=None)


class Heard(Callback):
    """Keeps what the steps give."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(outputs["similarities"])


def test_before_and_after_are_the_first_and_the_last_steps(quick_trainer):
    heard, logger = Heard(), SimilarityHistogramLogger(every_n_steps=100, window=2)
    module = ddl(lr=0.1, milestones=[])
    quick_trainer(max_epochs=2, callbacks=[heard, logger]).fit(module, loader(batch(0), batch(1), batch(2)))
    assert len(heard.steps) == 6
    summary = logger.summary()
    for phase, steps in (("before", heard.steps[:2]), ("after", heard.steps[-2:])):
        expected = overlaps(joint(steps))
        assert {f"similarity/{n}_{phase}": v for n, v in expected.items()}.items() <= summary.items()
    assert summary["similarity/overlap_hard_before"] != summary["similarity/overlap_hard_after"]


def test_numbers_say_how_far_distributions_overlap():
    low, high = torch.full((50,), 0.1), torch.full((50,), 0.9)
    found = overlaps({"easy": (high, low), "hard": (low, low)})
    assert found["overlap_easy"] == pytest.approx(0, abs=1e-6)
    assert found["overlap_hard"] == pytest.approx(1)
    assert found["gap_easy"] == pytest.approx(0.8)
    assert found["shared_pos_hard"] == pytest.approx(0, abs=1e-6)
    assert found["shared_neg_hard"] == pytest.approx(1)
    half = torch.cat([low, high])
    assert float(similarity_overlap(half, low)) == pytest.approx(0.5, abs=0.01)


def test_a_branch_without_positives_has_no_numbers_of_them():
    found = overlaps({"easy": (torch.ones(2), torch.zeros(2)), "hard": (torch.ones(0), torch.zeros(2))})
    assert set(found) == {"overlap_easy", "gap_easy", "shared_neg_hard"}


def test_histograms_and_numbers_come_every_so_many_steps(quick_trainer, tmp_path):
    logger, written = SimilarityHistogramLogger(every_n_steps=2, window=3), CSVLogger(tmp_path)
    trainer = quick_trainer(max_epochs=1, callbacks=[logger], logger=written, log_every_n_steps=1)
    trainer.fit(ddl(), loader(batch(0), batch(1), batch(2)))
    rows = read_rows(tmp_path / "tables" / "similarity_histograms.csv")
    assert {row["name"] for row in rows} == {"easy_pos", "easy_neg", "hard_pos", "hard_neg"}
    assert sum(int(row["count"]) for row in rows if row["name"] == "hard_pos") == 2 * 4  # two steps of b = 4
    found = [row for row in read_rows(Path(written.log_dir, "metrics.csv")) if row.get("similarity/overlap_hard")]
    assert [row["step"] for row in found] == ["1"]
    table = read_rows(tmp_path / "tables" / "similarity_overlap.csv")
    assert list(table[0]) == ["", "before", "after"]


def test_the_picture_shows_every_phase(make_trainer, tmp_path):
    given = {"num_classes": CLASSES, "seeds": [0], "backbone_args": {"width": 2}, "input_size": [3, SIDE, SIDE]}
    logger = SimilarityHistogramLogger(every_n_steps=100)
    make_trainer(max_epochs=1, callbacks=[logger]).fit(DDLComparison(**given), loader(batch()))
    assert (tmp_path / "pictures" / "similarity_before_after.png").stat().st_size > 10_000
    table = read_rows(tmp_path / "tables" / "similarity_overlap.csv")
    assert list(table[0]) == ["", "before", "after", "baseline"]
    assert "similarity/overlap_hard_baseline" in logger.summary()


def test_a_fit_without_distillation_leaves_nothing(quick_trainer, tmp_path):
    logger = SimilarityHistogramLogger(every_n_steps=1)
    module = ddl(hard=[], ddl_weight=0.0)
    quick_trainer(max_epochs=1, callbacks=[logger]).fit(module, loader({"easy": batch()["easy"]}))
    assert logger.summary() == {}
    assert not (tmp_path / "tables").exists()


def test_a_resumed_run_has_the_same_numbers(quick_trainer, tmp_path):
    batches = [batch(0), batch(1), batch(2)]
    whole = SimilarityHistogramLogger(window=4)
    module = ddl(lr=0.1)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    quick_trainer(max_epochs=2, callbacks=[whole]).fit(module, loader(*batches))
    module.load_state_dict(start)
    first = quick_trainer(max_epochs=1, callbacks=[SimilarityHistogramLogger(window=4)])
    first.fit(module, loader(*batches))
    first.save_checkpoint(path := tmp_path / "first.ckpt")
    torch.load(path, weights_only=True)
    resumed = SimilarityHistogramLogger(window=4)
    trainer = quick_trainer(max_epochs=2, callbacks=[resumed])
    trainer.fit(ddl(lr=0.1), loader(*batches), ckpt_path=path, weights_only=True)
    assert resumed.summary() == whole.summary()


def test_a_second_fit_begins_anew(quick_trainer):
    logger = SimilarityHistogramLogger(window=9)
    for _ in range(2):
        quick_trainer(max_epochs=1, callbacks=[logger]).fit(ddl(), loader(batch()))
        assert len(logger.before) == len(logger.recent) == 1


@pytest.mark.parametrize("arguments", [{"every_n_steps": 0}, {"window": 0}])
def test_arguments_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        SimilarityHistogramLogger(**arguments)


# -- DDLWarmup ---------------------------------------------------------------------------------------------------------


def test_the_weight_rises_with_the_steps_and_is_left_as_it_was(quick_trainer):
    class Note(Callback):
        factors: list[float] = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.factors.append(pl_module.ddl_factor)

    module, note = ddl(), Note()
    quick_trainer(max_epochs=2, callbacks=[DDLWarmup(4), note]).fit(module, loader(*(batch(i) for i in range(3))))
    assert note.factors == [0, 0.25, 0.5, 0.75, 1, 1]
    assert module.ddl_factor == 1


def test_pretraining_does_not_use_the_steps_up(quick_trainer):
    given = {"num_classes": CLASSES, "seeds": [0], "backbone_args": {"width": 2}, "input_size": [3, SIDE, SIDE]}
    warmup = DDLWarmup(4)
    module = DDLComparison(**given, pretrain_epochs=2)
    quick_trainer(max_epochs=3, callbacks=[warmup]).fit(module, loader(batch(0), batch(1)))
    assert warmup.done == 2
    again = DDLWarmup(4)
    again.load_state_dict(warmup.state_dict())
    again.on_train_batch_start(None, module, None, 0)
    assert module.ddl_factor == 0.5


def test_the_factor_is_on_the_distillation_alone():
    module, given = ddl(ddl_weight=2.0), batch()
    module.ddl_factor = 0.5
    parts, _ = module.losses(module.model, module.heads, given, list(given), 2.0)
    torch.testing.assert_close(parts["loss"], parts["softmax_loss"] + parts["ddl_loss"])


def test_a_module_without_distillation_is_refused(quick_trainer):
    with pytest.raises(ValueError, match="needs a DDL module, ImageClassifier has no distillation"):
        DDLWarmup(4).setup(quick_trainer(), ImageClassifier("resnet20"), "fit")
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        DDLWarmup(0)
