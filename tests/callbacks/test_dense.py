"""The dense network beside the pruned one."""

import csv

import pytest

from callbacks import ComplexityLogger, FilterSketchPruning
from lit_methods import FilterSketch
from tests.pruning_fits import SMALL, digits, fit, module_of


def test_dense_and_pruned_are_tested_side_by_side(make_trainer, tmp_path):
    data, timing = digits(), ComplexityLogger(repeats=1)
    trainer, module = fit(make_trainer, FilterSketchPruning(rates=0.5, at_epoch=1), data=data, extra=[timing])
    result = trainer.test(module, datamodule=data, verbose=False)[0]
    dense = FilterSketch.load_from_checkpoint(tmp_path / "dense.ckpt", weights_only=True)
    expected = make_trainer(**SMALL).test(dense, datamodule=data, verbose=False)[0]
    assert result["test/dense_top1"] == pytest.approx(expected["test/top1"])
    header, *rows = csv.reader((tmp_path / "tables" / "prune_dense_against_pruned.csv").open())
    assert header == ["", "dense", "pruned"]
    names = ["val/top1 around surgery", "test/top1", "MACs", "parameters", "file_bytes", "latency_ms"]
    assert [row[0] for row in rows] == names
    assert [float(cell) for cell in rows[1][1:]] == pytest.approx([expected["test/top1"], result["test/top1"]])
    assert all(float(cell) > 0 for row in rows[2:] for cell in row[1:])


def test_it_follows_a_run_that_was_moved_and_a_run_without_it_goes_on(quick_trainer, tmp_path):
    def trained(place, **options):
        return fit(quick_trainer, FilterSketchPruning(rates=0.5, at_epoch=1), default_root_dir=str(place), **options)

    trainer, _ = trained(tmp_path / "old")
    trainer.save_checkpoint(tmp_path / "old" / "last.ckpt")
    (tmp_path / "old").rename(tmp_path / "new")
    module, data = module_of(FilterSketch), digits()
    again = FilterSketchPruning(rates=0.5, at_epoch=1)
    place = {"default_root_dir": str(tmp_path / "new")}
    trainer = quick_trainer(max_epochs=3, callbacks=[again], **SMALL | place)
    trainer.fit(module, datamodule=data, ckpt_path=tmp_path / "new" / "last.ckpt", weights_only=True)
    assert "test/dense_top1" in trainer.test(module, datamodule=data, verbose=False)[0]
    (tmp_path / "new" / "dense.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"new/dense\.ckpt is gone: the dense network is not tested"):
        (result,) = trainer.test(module, datamodule=data, verbose=False)
    assert "test/dense_top1" not in result
