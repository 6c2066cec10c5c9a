"""What SubArchitectureAnalysis counts, keeps and shows; its figures are drawn on plain numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from callbacks import SubArchitectureAnalysis, sub_architecture_figures as figures
from callbacks.report import RunReport
from datamodules import CIFARDataModule
from lit_methods import NAD, ImageClassifier
from lit_methods.nad.functional import subarchitecture_similarity
from tests.victims import MEAN, STD, trained_weights

FIGURES = ("similarity_figure", "kept_ratio_figure", "paths_figure", "confusion_figure")
FIT_KEYS = {"similarity", "kept_ratio", "paths", "similar", "layers", "classes"}
TEST_KEYS = FIT_KEYS | {"confusion", "errors_in_top"}
POINTS = [f"body.relu{i}" for i in (1, 2, 3)]
IMAGES = 120


def module_of(class_ids=None, **options):
    torch.manual_seed(0)
    data = {"num_classes": 10, "input_size": [3, 32, 32], "mean": MEAN, "std": STD}
    module = NAD("tiny", POINTS, class_ids=class_ids, beta=0.5, **data | options)
    module.model.load_state_dict(trained_weights())
    return module


def digits(**options):
    return CIFARDataModule("digits", **{"batch_size": 40, "per_class_batch": 4, "num_test_images": IMAGES} | options)


@pytest.fixture
def shown(monkeypatch):
    """What is handed to RunReport, by key without ``nad/``; of figures, what they are drawn from."""
    found = SimpleNamespace(figures={}, tables={})
    for name in FIGURES:
        monkeypatch.setattr(f"callbacks.sub_architecture_analysis.{name}", lambda *args: args)
    for kind, into in (("figure", found.figures), ("table", found.tables)):

        def keep(self, trainer, key, *args, into=into):
            lines = [dict(zip(args[0], row, strict=True)) for row in args[1]] if into is found.tables else args[0]
            into[key.removeprefix("nad/")] = lines

        monkeypatch.setattr(RunReport, kind, keep)
    return found


def run_test(make_trainer, module, callback, **options):
    trainer = make_trainer(callbacks=[callback])
    trainer.test(module, datamodule=digits(**options), verbose=False)
    return callback.summary()


def images_and_labels():
    data = digits()
    data.setup("test")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    return (torch.cat([batch[key] for batch in batches]) for key in ("image", "label"))


# -- a fit -------------------------------------------------------------------------------------------------------------


def test_a_fit_shows_its_gates_and_keeps_those_of_every_epoch(make_trainer, shown, tmp_path):
    module, callback = module_of(), SubArchitectureAnalysis(history=True)
    drawn = [m.detach().clone().numpy() for m in module.gate_logits]
    trainer = make_trainer(max_epochs=2, limit_train_batches=2, limit_val_batches=0, callbacks=[callback])
    trainer.fit(module, datamodule=digits())
    assert {*shown.figures, *shown.tables} == FIT_KEYS
    files = {path.relative_to(tmp_path).as_posix(): np.load(path) for path in tmp_path.rglob("*.npz")}
    assert sorted(files) == ["gates.npz", "gates/epoch00.npz", "gates/epoch01.npz", "gates/epoch02.npz"]
    for i, point in enumerate(POINTS):
        last = module.gate_logits[i].detach().numpy()
        assert np.array_equal(files["gates.npz"][point], last)
        assert np.array_equal(files["gates/epoch02.npz"][point], last)
        assert np.array_equal(files["gates/epoch00.npz"][point], drawn[i])
        assert not np.array_equal(files["gates/epoch01.npz"][point], last)
        assert not np.array_equal(files["gates/epoch01.npz"][point], drawn[i])
    assert files["gates.npz"]["class_ids"].tolist() == list(range(10))
    assert [[row[name] for name in ("steps", "skipped", "images")] for row in shown.tables["classes"]] == (
        module.progress.tolist()
    )
    assert callback.summary().keys() == {"nad/diversity", "nad/mean_similarity", "nad/empty_layers"}


def test_what_is_shown_follows_from_the_masks(make_trainer, shown):
    module = module_of([4, 1, 7, 9], class_names=[f"digit {i}" for i in range(10)])
    with torch.no_grad():
        module.gate_logits[1][2] = -1  # class 7 has nothing open there
    summary = run_test(make_trainer, module, SubArchitectureAnalysis(top=2))
    masks = module.export_masks()
    similarity = subarchitecture_similarity([torch.stack([masks[i][p] for i in masks]) for p in POINTS]).numpy()
    names = ["digit 4", "digit 1", "digit 7", "digit 9"]
    drawn, order = shown.figures["similarity"]
    assert sorted(order) == sorted(names)
    places = [names.index(name) for name in order]
    assert np.array_equal(drawn, similarity[places][:, places])
    for row, line in enumerate(shown.tables["similar"]):
        best, second = sorted((i for i in range(4) if i != row), key=lambda i: -similarity[row, i])[:2]
        assert line == {
            "class": names[row],
            "similar_1": names[best],
            "similarity_1": similarity[row, best],
            "similar_2": names[second],
            "similarity_2": similarity[row, second],
        }
    kept = np.array([[masks[i][p].double().mean() for p in POINTS] for i in masks])
    assert np.array_equal(shown.figures["kept_ratio"][0], kept)
    assert [line["kept"] for line in shown.tables["layers"]] == pytest.approx(kept.mean(0).tolist())
    assert [line["channels"] for line in shown.tables["layers"]] == [8, 12, 16]
    assert [line["empty_classes"] for line in shown.tables["layers"]] == [0, 1, 0]
    overall = [sum(int(m.sum()) for m in masks[i].values()) / 36 for i in masks]
    assert [line["kept"] for line in shown.tables["classes"]] == pytest.approx(overall)
    mean = np.mean([similarity[i, j] for i in range(4) for j in range(i)])
    assert summary["nad/mean_similarity"] == pytest.approx(mean)
    assert summary["nad/diversity"] == pytest.approx(1 - mean)
    assert summary["nad/empty_layers"] == 1
    first, second, points, pair, shared = shown.figures["paths"]
    i, j = (names.index(name) for name in pair)
    assert shared == similarity[i, j] == similarity[~np.eye(4, dtype=bool)].max()
    for mine, label in ((first, [*masks][i]), (second, [*masks][j])):
        assert all(np.array_equal(m, masks[label][p]) for m, p in zip(mine, points, strict=True))


def test_the_two_classes_of_the_paths_can_be_chosen(make_trainer, shown):
    run_test(make_trainer, module_of([4, 1, 7, 9]), SubArchitectureAnalysis(pair=[9, 4]))
    assert shown.figures["paths"][3] == ("9", "4")


# -- a test ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_ids", [None, [8, 1, 9, 4, 2]])
def test_a_test_counts_what_a_loop_counts(make_trainer, shown, class_ids):
    module = module_of(class_ids).eval()
    summary = run_test(make_trainer, module, SubArchitectureAnalysis())
    ids = module.class_ids
    (images, labels), similarity = images_and_labels(), _similarity(module)
    with torch.no_grad():
        preds = module(images).argmax(1).tolist()
        own = {
            label: module.gated(module.as_fed(images[labels == label]), task=row, mode="hard").argmax(1) == label
            for row, label in enumerate(ids)
        }
    seen = zip(labels.tolist(), preds, strict=True)
    pairs = [(ids.index(a), ids.index(b)) for a, b in seen if {a, b} <= {*ids} and a != b]
    assert pairs
    rows = range(len(ids))
    near = [sorted((i for i in rows if i != row), key=lambda i: -similarity[row, i])[:3] for row in rows]
    assert summary["nad/errors"] == len(pairs)
    assert summary["nad/errors_in_top3"] == pytest.approx(np.mean([b in near[a] for a, b in pairs]))
    assert summary["nad/errors_in_top3_low"] < summary["nad/errors_in_top3"] < summary["nad/errors_in_top3_high"]
    assert summary["nad/chance_top3"] == 3 / (len(ids) - 1)
    assert 0 < summary["nad/p_top3"] <= 1
    assert {*shown.figures, *shown.tables} == TEST_KEYS
    assert [(row["tested"], row["own_top1"]) for row in shown.tables["classes"]] == [
        (len(hit), pytest.approx(float(hit.float().mean()))) for hit in own.values()
    ]
    counted = {(ids.index(int(r["class"])), ids.index(int(r["predicted"]))): r for r in shown.tables["confusion"]}
    assert {pair: row["images"] for pair, row in counted.items()} == {pair: pairs.count(pair) for pair in pairs}
    assert [row["images"] for row in shown.tables["confusion"]] == sorted(map(pairs.count, {*pairs}), reverse=True)
    for (a, b), row in counted.items():
        assert row["similarity"] == similarity[a, b]
        assert (row["rank_of_similarity"] <= 3) == (b in near[a])
    tops = shown.tables["errors_in_top"]
    assert [row["top"] for row in tops] == list(range(1, min(5, len(ids) - 2) + 1))
    assert tops[2]["rate"] == summary["nad/errors_in_top3"]
    x, y, rates, intervals, chances = shown.figures["confusion"]
    assert len(x) == len(y) == len(ids) * (len(ids) - 1) // 2
    assert rates.tolist() == [row["rate"] for row in tops]
    assert intervals.tolist() == [[row["low"], row["high"]] for row in tops]
    assert chances.tolist() == [row["chance"] for row in tops]


def _similarity(module):
    return subarchitecture_similarity(module.gated.open_gates()).numpy()


def test_one_class_has_nothing_to_be_compared_with(make_trainer, shown):
    summary = run_test(make_trainer, module_of([5]), SubArchitectureAnalysis())
    assert {*shown.figures, *shown.tables} == {"kept_ratio", "layers", "classes"}
    assert {row["diversity"] for row in shown.tables["layers"]} == {""}
    assert summary.keys() == {"nad/empty_layers"}


def test_of_two_classes_errors_tell_nothing(make_trainer, shown):
    summary = run_test(make_trainer, module_of([8, 9]), SubArchitectureAnalysis())
    assert {*shown.figures, *shown.tables} == FIT_KEYS
    assert summary.keys() == {"nad/diversity", "nad/mean_similarity", "nad/empty_layers", "nad/errors"}


def test_of_few_classes_the_top_is_cut(make_trainer, shown):
    summary = run_test(make_trainer, module_of([8, 9, 1, 4]), SubArchitectureAnalysis(top=3))
    assert "nad/chance_top3" not in summary  # it would be 1
    assert [row["top"] for row in shown.tables["errors_in_top"]] == [1, 2]
    assert "similar_3" in shown.tables["similar"][0]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top=0 must be at least 1"),
        ({"pair": [3]}, "must name two classes"),
        ({"pair": [3, 3]}, "must name two classes"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SubArchitectureAnalysis(**options)


def test_a_pair_without_gates_is_refused_before_anything_runs(make_trainer):
    with pytest.raises(ValueError, match=r"pair=\[4, 3\]: class 3 has no gates; there are those of 4, 1"):
        run_test(make_trainer, module_of([4, 1]), SubArchitectureAnalysis(pair=[4, 3]))


def test_a_module_without_gates_is_refused(make_trainer):
    with pytest.raises(ValueError, match="for modules with gates, such as NAD, not for ImageClassifier"):
        run_test(make_trainer, ImageClassifier("tiny"), SubArchitectureAnalysis())


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 1000))])
def test_figures_are_small(classes, tmp_path):
    generator = np.random.default_rng(0)
    points = [f"layer{i}" for i in range(17)]
    similarity = generator.random((classes, classes))
    i, j = np.triu_indices(classes, 1)
    rates = np.linspace(0.3, 0.7, min(5, max(1, classes - 2)))
    masks = [[generator.random(2 ** (4 + k // 2)) < 0.4 for k in range(17)] for _ in range(2)]
    drawn = {
        "similarity": figures.similarity_figure(similarity, [f"class number {k}" for k in range(classes)]),
        "kept": figures.kept_ratio_figure(0.2 + 0.4 * generator.random((classes, 17)), points),
        "paths": figures.paths_figure(*masks, points, ("cat", "dog"), 0.5),
        "confusion": figures.confusion_figure(
            similarity[i, j], generator.random(len(i)) ** 4, rates, np.stack([rates - 0.1, rates + 0.1], 1), rates / 2
        ),
        "hit_rate": figures.hit_rate_figure(generator.random(17), generator.random(17) / 9, points),
    }
    for name, figure in drawn.items():
        figure.savefig(tmp_path / "figure.png", dpi=100, bbox_inches="tight")
        assert 1000 < (tmp_path / "figure.png").stat().st_size < 100_000, name
    labels = [text.get_text() for text in drawn["similarity"].axes[0].get_xticklabels()]
    assert len(labels) == (0 if classes == 1000 else classes)
    assert len(drawn["kept"].axes[0].get_lines()) == (1 if classes == 1000 else classes + 1)
    assert [text.get_text() for text in drawn["kept"].axes[0].get_xticklabels()] == points


def test_paths_are_stretched_and_what_is_shared_is_in_both():
    first = [np.array([True, False]), np.arange(480) < 120]
    second = [np.array([True, True]), np.arange(480) % 2 == 0]
    panels = figures.paths_figure(first, second, ["in", "out"], ("a", "b"), 0.25).axes
    left, right, both = (panel.get_images()[0].get_array() for panel in panels)
    assert_close(left.mean(1), np.array([0.5, 0.25]))
    assert set(np.unique(left)) == {0, 1}
    assert_close(right[1], np.full_like(right[1], 0.5))  # every other channel, two to a cell
    assert_close(both, np.where(left == 1, right, 0))
    assert [panel.get_title() for panel in panels] == ["a", "b", "shared, similarity 0.25"]


def test_a_heat_map_of_many_classes_shows_means_without_the_diagonal():
    groups = np.arange(400) // 200
    similarity = np.where(groups[:, None] == groups, 0.6, 0.2)
    np.fill_diagonal(similarity, 1.0)
    shown = figures.similarity_figure(similarity, ["x"] * 400).axes[0].get_images()[0].get_array()
    assert len(shown) <= 160
    assert_close(float(shown.max()), 0.6)
    assert_close(float(shown.min()), 0.2)
