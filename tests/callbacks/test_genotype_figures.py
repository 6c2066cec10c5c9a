"""Pictures of cells, of a search's course and of operation weights."""

import io
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Circle, FancyArrowPatch

from callbacks.genotype_figures import alpha_figure, genotype_figure, search_figure
from lit_methods.bpe_mip.search_space import Genotype, genotype_from_sample28, random_genotype

EMPTY = Genotype([[], [], [], []], [[], [], [], []])
SLIM = random_genotype(torch.Generator().manual_seed(0))
FULL = genotype_from_sample28([5, 6, 0, 3] * 7)
WIDEST = genotype_from_sample28([0] * 28)  # "max 3x3" is the longest label
LABELS = {"max 3x3", "avg 3x3", "skip", "sep 3x3", "sep 5x5", "dil 3x3", "dil 5x5"}


def size_of_png(figure):
    file = io.BytesIO()
    figure.savefig(file, dpi=30)
    return len(file.getvalue())


def arrows(axes):
    return [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]


def circles(axes):
    return [patch for patch in axes.patches if isinstance(patch, Circle)]


def course(arrow):
    """Points on the curve of an arrow, its head left out."""
    start, control, end = arrow.get_path().vertices[:3]
    t = np.linspace(0, 1, 50)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def labels(axes):
    return [text for text in axes.texts if text.get_text() in LABELS]


@pytest.mark.parametrize(("genotype", "edges"), [(EMPTY, 0), (SLIM, 8), (FULL, 14)], ids=["empty", "slim", "full"])
def test_each_edge_is_an_arrow_with_its_operation(genotype, edges):
    figure = genotype_figure(genotype, "title")
    assert size_of_png(figure) > 1000
    assert figure.get_suptitle() == "title"
    for axes, cell in zip(figure.axes, (genotype.normal, genotype.reduce), strict=True):
        assert len(arrows(axes)) == len(labels(axes)) == edges
        wanted = sorted(name.replace("_connect", "").replace("_conv_", " ").replace("_pool_", " ")
                        for node in cell for name, _ in node)  # fmt: skip
        assert sorted(text.get_text() for text in labels(axes)) == wanted
        assert {"2", "3", "4", "5", "output", "state 0", "state 1"} <= {text.get_text() for text in axes.texts}


def test_an_arrow_runs_from_its_source_to_its_node():
    axes = genotype_figure(Genotype([[], [], [["skip_connect", 3]], []], EMPTY.reduce)).axes[0]
    first, *_, last = course(arrows(axes)[0])
    places = np.array([circle.center for circle in circles(axes)])
    assert np.linalg.norm(places - first, axis=1).argmin() == 3
    assert np.linalg.norm(places - last, axis=1).argmin() == 4


def test_nodes_without_edges_are_dashed():
    axes = genotype_figure(Genotype([[["skip_connect", 0]], [], [["skip_connect", 2]], []], SLIM.reduce)).axes
    styles = [[circle.get_linestyle() for circle in circles(one)] for one in axes]
    assert [style in ("--", "dashed") for style in styles[0]] == [False, False, False, True, False, True]
    assert not any(style in ("--", "dashed") for style in styles[1])


def test_no_label_of_the_full_cell_touches_another_or_a_state():
    """So it is with every other cell: a label has its place whichever other edges there are."""
    figure = genotype_figure(WIDEST)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in labels(axes)]
    boxes += [patch.get_window_extent() for patch in axes.patches if not isinstance(patch, FancyArrowPatch)]
    assert len(boxes) == 14 + 6 + 1
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other), (one, other)


def test_no_edge_runs_through_a_state_that_is_not_its_own():
    axes = genotype_figure(FULL).axes[0]
    assert len(arrows(axes)) == 14
    for arrow in arrows(axes):
        for circle in circles(axes):
            if circle not in (arrow.patchA, arrow.patchB):
                distances = np.linalg.norm(course(arrow) - circle.center, axis=1)
                assert distances.min() > circle.radius + 0.1


def test_the_course_shows_the_best_so_far_and_the_failures():
    figure = search_figure(torch.tensor([float("nan"), 0.5, 0.25, float("nan"), 0.75]), best_name="best cell")
    points, best, failed = figure.axes[0].lines
    assert points.get_xydata().tolist() == [[2, 0.5], [3, 0.25], [5, 0.75]]
    np.testing.assert_array_equal(best.get_ydata(), [np.nan, 0.5, 0.5, 0.5, 0.75])
    assert failed.get_xdata().tolist() == [1, 4]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["estimate", "best cell", "failed"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("evaluation", "validation top-1")
    assert size_of_png(figure) > 1000


def test_a_failure_stands_below_all_estimates():
    axes = search_figure([0.5, float("nan"), 0.6]).axes[0]
    size_of_png(axes.figure)
    failed = axes.lines[2]
    bottom = failed.get_transform().transform(failed.get_xydata())[0, 1]
    assert bottom < axes.transData.transform((1, 0.5))[1]


@pytest.mark.parametrize("accuracies", [[], [float("nan")] * 2, [0.5]], ids=["none", "all failed", "one"])
def test_a_course_of_little_is_drawn_too(accuracies):
    assert size_of_png(search_figure(accuracies)) > 1000


def test_a_table_is_no_course():
    with pytest.raises(ValueError, match=r"accuracies must have shape \(T,\), one per evaluation, got \(2, 2\)"):
        search_figure(np.zeros((2, 2)))


@pytest.mark.parametrize("operations", [7, 8])
def test_weights_have_a_row_per_edge_and_a_column_per_operation(operations):
    weights = torch.rand(28, operations, generator=torch.Generator().manual_seed(0)).softmax(1)
    figure = alpha_figure(weights)
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert names[0] == "max_pool_3x3"
    assert names[-1] == ("none" if operations == 8 else "dil_conv_5x5")
    assert len(names) == operations
    assert (rows[0], rows[13], rows[14], rows[27]) == ("normal 0->2", "normal 4->5", "reduce 0->2", "reduce 4->5")
    np.testing.assert_array_equal(axes.images[0].get_array(), weights.double().numpy())
    assert axes.lines[0].get_xdata().tolist() == weights[:, :7].argmax(1).tolist()
    assert size_of_png(figure) > 1000


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros((14, 7)), r"probabilities must have shape \(28, 7\), got \(14, 7\)"),
        (np.zeros((14, 8)), r"probabilities must have shape \(28, 8\), got \(14, 8\)"),
        (np.zeros((28, 6)), r"shape \(28, 8\), got \(28, 6\)"),
        (np.full((28, 8), np.nan), "probabilities has NaN"),
        (np.full((28, 8), -0.5), r"probabilities has -0.5, outside of \[0, 1\]; give the softmax"),
        (np.full((28, 8), 2.0), r"probabilities has 2, outside of \[0, 1\]; give the softmax"),
    ],
)
def test_what_are_no_weights_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        alpha_figure(weights)
