"""WIDER FACE's average precision: the protocol to the last count, from any batches and processes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_methods.functional import wider_ap
from lit_methods.functional.wider_ap import match_detections
from lit_methods.metrics import WIDERFaceAP
from lit_methods.metrics.face_detection import wider_face_ap
from tests.forked import answers_of
from tests.wider_reference import naive_ap

LEVELS = [("a", "easy"), ("a", "medium"), ("a", "hard"), ("b", "easy"), ("b", "hard"), ("c", "hard")]
EXACT = {"rtol": 0, "atol": 1e-9, "equal_nan": True}
BEFORE = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")


@pytest.fixture
def sets(vectors):
    """Per set the lists of detections, faces and flags of each level."""
    with np.load(vectors / "asfd" / "wider_ap.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}

    def split(prefix, rows, images):
        return [rows[images == i] for i in range(int(data[f"{prefix}_num_images"]))]

    found = {"data": data}
    for prefix in "abc":
        faces = data[f"{prefix}_gt_image"]
        found[prefix] = {
            "preds": split(prefix, data[f"{prefix}_pred"], data[f"{prefix}_pred_image"]),
            "gts": split(prefix, data[f"{prefix}_gt"], faces),
        } | {
            level: split(prefix, data[f"{prefix}_keep_{level}"].bool(), faces) for own, level in LEVELS if own == prefix
        }
    return found


def some_images(count=24, seed=0):
    """Detections near faces and anywhere, unsorted, with ties; images without either; flags of two levels."""
    draw = torch.Generator().manual_seed(seed)
    preds, gts, easy, hard = [], [], [], []
    for i in range(count):
        faces = torch.rand(i % 5, 4, generator=draw, dtype=torch.float64) * 60 + 10
        boxes = [torch.rand(i % 3, 4, generator=draw, dtype=torch.float64) * 60 + 10]
        boxes += [faces + torch.randn(faces.shape, generator=draw, dtype=torch.float64) * k for k in (1, 4)]
        boxes = torch.cat(boxes)[(1 if i % 7 == 0 else 0) * 99 :]
        scores = (torch.rand(len(boxes), 1, generator=draw, dtype=torch.float64) * 40).round() / 8 - 1
        preds.append(torch.cat([boxes, scores], 1))
        gts.append(faces)
        easy.append(torch.rand(len(faces), generator=draw) < 0.4)
        hard.append(easy[-1] | (torch.rand(len(faces), generator=draw) < 0.5))
    return preds, gts, {"easy": easy, "hard": hard}


def as_dicts(preds, gts, keeps):
    """The same for the metric."""

    def corners(boxes):
        return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], 1)

    targets = [{"boxes": corners(gt)} | {f"keep_{k}": v[i] for k, v in keeps.items()} for i, gt in enumerate(gts)]
    return [{"boxes": corners(pred), "scores": pred[:, 4]} for pred in preds], targets


def measured(metric, preds, targets, batches=1):
    """The metric after some batches of images."""
    for places in torch.arange(len(preds)).tensor_split(batches):
        metric.update([preds[i] for i in places], [targets[i] for i in places])
    return metric


def values(metric):
    return {name: float(value) for name, value in metric.compute().items()}


# -- the protocol -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "level"), LEVELS)
def test_counts_curves_and_average_precision_are_those_of_the_reference(sets, prefix, level):
    own, data = sets[prefix], sets["data"]
    result = wider_face_ap(own["preds"], own["gts"], own[level])
    assert torch.equal(result.counts, data[f"{prefix}_counts_{level}"])
    assert result.num_faces == int(data[f"{prefix}_faces_{level}"])
    assert_close(result.precision, data[f"{prefix}_precision_{level}"], **EXACT)
    assert_close(result.recall, data[f"{prefix}_recall_{level}"], **EXACT)
    assert_close(result.ap, data[f"{prefix}_ap_{level}"][0], **EXACT)


def test_one_image_with_scores_as_they_are(vectors):
    with np.load(vectors / "asfd" / "wider_image.npz") as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files}
    result = wider_face_ap([data["pred"]], [data["gt"]], [data["keep"].bool()], normalize=False)
    assert torch.equal(result.counts, data["counts"])
    assert not torch.equal(result.counts, wider_face_ap([data["pred"]], [data["gt"]], [data["keep"]]).counts)


@pytest.mark.parametrize("prefix", "abc")
def test_the_metric_gives_the_same(sets, prefix):
    own, data = sets[prefix], sets["data"]
    levels = [level for p, level in LEVELS if p == prefix]
    preds, targets = as_dicts(own["preds"], own["gts"], {level: own[level] for level in levels})
    metric = measured(WIDERFaceAP(levels), preds, targets, batches=3)
    found = metric.compute()
    assert list(found) == [*levels, "all"]
    assert {(v.dtype, v.shape) for v in found.values()} == {(torch.float64, ())}
    for level in levels:
        assert_close(found[level], data[f"{prefix}_ap_{level}"][0], **EXACT)
        assert torch.equal(metric.result[level].counts, data[f"{prefix}_counts_{level}"])
    every = wider_face_ap(own["preds"], own["gts"], [torch.ones(len(gt), dtype=torch.bool) for gt in own["gts"]])
    assert_close(found["all"], every.ap, **EXACT)
    assert metric.result["all"].num_faces == every.num_faces


@pytest.mark.parametrize(("iou", "thresholds"), [(0.5, 1000), (0.7, 37), (1.0, 1)])
def test_a_plain_loop_gives_the_same(iou, thresholds):
    preds, gts, keeps = some_images(12)
    if iou == 1:
        pairs = [(pred, gt, min(len(pred), len(gt))) for pred, gt in zip(preds, gts, strict=True)]
        preds = [torch.cat([gt[:n], pred[:n, 4:]], 1) for pred, gt, n in pairs]
    for keep in keeps.values():
        result = wider_face_ap(preds, gts, keep, iou, thresholds)
        arrays = ([part.numpy() for part in parts] for parts in (preds, gts, keep))
        ap, counts = naive_ap(*arrays, thresholds, iou)
        assert 0 < ap < 1
        np.testing.assert_array_equal(result.counts, counts)
        np.testing.assert_allclose(float(result.ap), ap, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_evaluation_of_a_real_detector(shared):
    from scipy.io import loadmat

    folder = shared / "data" / "widerface"
    if not (folder / "val_detections_example.npz").is_file():
        pytest.skip("no detections of WIDER FACE in ../shared")
    with np.load(folder / "val_detections_example.npz") as file:
        rows = torch.from_numpy(np.concatenate([file["xywh"], file["score"][:, None]], 1).astype(np.float64))
        preds = dict(zip(file["image"].tolist(), rows.tensor_split(file["offset"][1:-1].tolist()), strict=True))
    levels = {name: loadmat(folder / "eval_ground_truth" / f"wider_{name}_val.mat") for name in WIDERFaceAP().levels}
    truth = levels["easy"]
    names, gts, keeps = [], [], {name: [] for name in levels}
    for i, event in enumerate(truth["event_list"][:, 0]):
        for j, file in enumerate(truth["file_list"][i, 0][:, 0]):
            names.append(f"{event.item()}/{file.item()}")
            gts.append(torch.from_numpy(truth["face_bbx_list"][i, 0][j, 0].astype(np.float64)))
            for name, level in levels.items():
                keep = torch.zeros(len(gts[-1]), dtype=torch.bool)
                keep[torch.from_numpy(level["gt_list"][i, 0][j, 0].astype(np.int64).ravel()) - 1] = True
                keeps[name].append(keep)
    metric = measured(WIDERFaceAP(), *as_dicts([preds[name] for name in names], gts, keeps), batches=50)
    found = values(metric)
    assert {name: round(found[name], 5) for name in levels} == {"easy": 0.94484, "medium": 0.92447, "hard": 0.81533}
    assert {name: metric.result[name].num_faces for name in levels} == {"easy": 7211, "medium": 13319, "hard": 31958}


# -- what must not matter, and what must ------------------------------------------------------------------------------


def test_perfect_predictions_are_worth_one():
    _, gts, keeps = some_images()
    order = torch.linspace(-3, 5, sum(map(len, gts)), dtype=torch.float64).split([len(gt) for gt in gts])
    preds = [torch.cat([gt, scores[:, None]], 1) for gt, scores in zip(gts, order, strict=True)]
    for keep in (*keeps.values(), [torch.ones(len(gt), dtype=torch.bool) for gt in gts]):
        assert float(wider_face_ap(preds, gts, keep).ap) == 1
    assert float(wider_face_ap([p * torch.tensor([1, 1, 1, 1, 0]) for p in preds], gts, keeps["hard"]).ap) == 1


def test_positive_affine_maps_of_scores_change_nothing():
    preds, gts, keeps = some_images()  # eighths: doubling and moving them is exact
    mapped = [torch.cat([pred[:, :4], 4 * pred[:, 4:] + 16], 1) for pred in preds]
    one, two = (wider_face_ap(rows, gts, keeps["hard"]) for rows in (preds, mapped))
    assert torch.equal(one.counts, two.counts)
    assert not torch.equal(one.counts, wider_face_ap(mapped, gts, keeps["hard"], normalize=False).counts)


def test_the_order_in_which_an_image_is_given_does_not_matter():
    preds, gts, keeps = some_images()
    draw = torch.Generator().manual_seed(1)
    mixed = [pred[torch.randperm(len(pred), generator=draw)] for pred in preds]
    one, two = (wider_face_ap(rows, gts, keeps["hard"]) for rows in (preds, mixed))
    assert torch.equal(one.counts, two.counts)
    assert one.ap == two.ap


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 1, 3, 0]])
def test_among_equal_scores_the_first_finds_the_face(order):
    faces = torch.tensor([[0.0, 0, 9, 9], [2.0, 0, 11, 9]], dtype=torch.float64)
    near = torch.tensor([[0.0, 0, 9, 9], [2.0, 0, 11, 9], [0, 0, 9, 10], [0, 0, 9, 9]], dtype=torch.float64)[order]
    scores = torch.tensor([0.5, 0.5, 0.5, 0.4])[order]
    image = torch.zeros(4, dtype=torch.int64)
    keeps = torch.tensor([[True, False], [True, True]])
    counted, found = match_detections(near, scores, image, faces, image[:2], keeps)
    assert counted.tolist() == [[True, False, True, True], [True] * 4]
    assert found.tolist() == [[True, False, False, False], [True, True, False, False]]


def test_among_equal_faces_the_first_is_taken():
    face = torch.tensor([[0.0, 0, 9, 9]], dtype=torch.float64)
    for flags, expected in (
        ([True, False], ([True, True], [True, False])),
        ([False, True], ([False] * 2, [False] * 2)),
    ):
        two, image = face.repeat(2, 1), torch.zeros(2, dtype=torch.int64)
        counted, found = match_detections(two, torch.ones(2), image, two, image, torch.tensor([flags]))
        assert (counted[0].tolist(), found[0].tolist()) == expected


def test_detections_without_faces_count_for_the_range_of_scores_alone():
    preds, gts, keeps = some_images()
    empty = [*gts, torch.zeros(0, 4)]
    keep = [*keeps["hard"], torch.zeros(0, dtype=torch.bool)]
    alarms = torch.tensor([[0.0, 0, 9, 9, 1.0]] * 5, dtype=torch.float64)
    plain = wider_face_ap(preds, gts, keeps["hard"])
    assert torch.equal(wider_face_ap([*preds, alarms], empty, keep).counts, plain.counts)
    alarms[0, 4] = 1e6
    assert (wider_face_ap([*preds, alarms], empty, keep).counts[:-1] == 0).all()
    none = [torch.zeros(len(gt), dtype=torch.bool) for gt in gts]  # there, faces that do not count
    assert (wider_face_ap(preds, gts, none).counts[-1] > 0).tolist() == [True, False]


def test_a_detection_on_an_ignored_face_changes_nothing():
    preds, gts, keeps = some_images()
    ignored = [torch.cat([gt, torch.ones(len(gt), 1)], 1)[~keep] for gt, keep in zip(gts, keeps["easy"], strict=True)]
    assert sum(map(len, ignored)) > 20
    more = [torch.cat(pair) for pair in zip(preds, ignored, strict=True)]
    one, two = (wider_face_ap(rows, gts, keeps["easy"]) for rows in (preds, more))
    assert torch.equal(one.counts, two.counts)


@pytest.mark.parametrize(("together", "at_once"), [(0, 10**9), (60, 10**9), (10**9, 7), (0, 1)])
def test_images_alone_together_and_in_blocks_are_the_same(monkeypatch, together, at_once):
    preds, gts, keeps = some_images()
    plain = wider_face_ap(preds, gts, keeps["hard"])
    monkeypatch.setattr(wider_ap, "TOGETHER", together)
    monkeypatch.setattr(wider_ap, "AT_ONCE", at_once)
    assert torch.equal(wider_face_ap(preds, gts, keeps["hard"]).counts, plain.counts)


def test_boxes_without_area_match_nothing_but_themselves():
    faces = torch.tensor([[5.0, 5, 0, 0], [20, 20, -1, -1], [40, 40, 9, 9]])
    boxes = [[5.0, 5, 0, 0, 0.1], [20, 20, -1, -1, 0.2], [49, 49, -9, -9, 0.3], [1e200, 1e200, 1e200, 1e200, 0.4]]
    faces = torch.cat([faces.double(), torch.full((1, 4), 1e200, dtype=torch.float64)])
    preds = [torch.tensor(boxes, dtype=torch.float64)]
    result = wider_face_ap(preds, [faces], [torch.ones(4, dtype=torch.bool)])
    assert result.counts[-1].tolist() == [4, 1]


# -- without images, faces or numbers ---------------------------------------------------------------------------------


def test_a_level_without_faces_has_no_number():
    preds, gts, keeps = some_images()
    none = [torch.zeros_like(keep) for keep in keeps["hard"]]
    result = wider_face_ap(preds, gts, none)
    assert result.ap.isnan()
    assert result.recall.isnan().all()
    found = values(measured(WIDERFaceAP(["hard"]), *as_dicts(preds, gts, {"hard": none})))
    assert np.isnan(found["hard"])
    assert found["all"] > 0


def test_faces_without_a_detection_count():
    gts, keeps = [torch.rand(3, 4)], [torch.tensor([True, True, False])]
    result = wider_face_ap([torch.zeros(0, 5)], gts, keeps)
    assert (float(result.ap), result.num_faces) == (0, 2)
    assert result.precision.isnan().all()
    assert (result.recall == 0).all()
    assert wider_face_ap([], [], []).ap.isnan()


@BEFORE
def test_before_any_image_there_is_no_number():
    metric = WIDERFaceAP()
    assert metric.result is None
    assert all(value.isnan() for value in metric.compute().values())
    metric.update([], [])
    assert all(value.isnan() for value in metric.compute().values())
    assert metric.result["all"].num_faces == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_detections_that_are_not_finite_are_left_out_with_one_warning(bad):
    preds, targets = as_dicts(*some_images())
    expected = values(measured(WIDERFaceAP(["easy", "hard"]), preds, targets))
    for i, column in ((3, 0), (8, 3), (12, None)):
        boxes, scores = torch.tensor([[1.0, 1, 9, 9]] * 2, dtype=torch.float64), torch.full((2,), 9.0)
        if column is None:
            scores[:] = bad
        else:
            boxes[:, column] = bad
        preds[i] = {"boxes": torch.cat([boxes, preds[i]["boxes"]]), "scores": torch.cat([scores, preds[i]["scores"]])}
    metric = measured(WIDERFaceAP(["easy", "hard"]), preds, targets, batches=4)
    with pytest.warns(UserWarning, match="left out 6 detections with NaN or infinity") as caught:
        assert values(metric) == expected
    assert len(caught) == 1
    metric.reset()
    assert metric.dropped == 0


# -- batches, types and processes -------------------------------------------------------------------------------------


def test_any_batches_and_order_give_the_same_to_the_last_bit():
    preds, targets = as_dicts(*some_images())
    expected = values(measured(WIDERFaceAP(["easy", "hard"]), preds, targets))
    order = torch.randperm(len(preds)).tolist()
    shuffled = [preds[i] for i in order], [targets[i] for i in order]
    for batches in (1, 5, 30):  # of which 6 are empty
        assert values(measured(WIDERFaceAP(["easy", "hard"]), *shuffled, batches)) == expected


def test_the_state_is_small_and_keeps_its_type():
    preds, targets = as_dicts(*some_images())
    expected = values(measured(WIDERFaceAP(["easy", "hard"]), preds, targets))
    metric = nn.ModuleList([WIDERFaceAP(["easy", "hard"])]).to(torch.bfloat16).half()[0]
    grown = [{name: part.clone().requires_grad_() for name, part in pred.items()} for pred in preds]
    assert values(measured(metric, grown, targets)) == expected
    table = metric.table()
    assert sum(part.element_size() for part in table) == 16
    assert not any(part.requires_grad for part in table)
    other = WIDERFaceAP(["easy", "hard"])
    assert [float(v) for v in other(preds, targets).values()] == list(expected.values())
    assert other.result["hard"].ap == expected["hard"]


def test_a_device_without_float64_keeps_nothing():
    preds, targets = as_dicts(*some_images(6))
    metric = WIDERFaceAP([])
    metric._device = torch.device("mps")  # which has no float64
    measured(metric, preds, targets)
    assert {part.device.type for part in metric.table()} == {"cpu"}
    assert values(metric) == values(measured(WIDERFaceAP([]), preds, targets))


def test_half_precision_is_taken_as_it_is():
    box, half = torch.tensor([[3.0, 3, 40, 40]]), torch.tensor([0.3], dtype=torch.bfloat16)
    metric = WIDERFaceAP(())
    metric.update([{"boxes": box.bfloat16(), "scores": half}], [{"boxes": box}])
    assert metric.table()[0].tolist() == half.double().tolist()
    assert values(metric) == {"all": 1}


def on_rank(rank, shares, preds, targets, put):
    metric = WIDERFaceAP(["easy", "hard"])
    if shares[rank] is not None:
        metric.update([preds[i] for i in shares[rank]], [targets[i] for i in shares[rank]])
    found = values(metric)
    put((rank, found, metric.result["hard"].counts.tolist(), sum(map(len, metric.scores)), int(metric.faces[-1])))


@BEFORE
@pytest.mark.parametrize(
    "shares", [[range(7), range(7, 24)], [range(24), None], [[], range(24)]], ids=["uneven", "no update", "empty"]
)
def test_two_processes_give_what_one_gives(shares, tmp_path):
    preds, targets = as_dicts(*some_images())
    one = measured(WIDERFaceAP(["easy", "hard"]), preds, targets)
    expected, counts = values(one), one.result["hard"].counts.tolist()
    found = sorted(answers_of(on_rank, 2, tmp_path, shares, preds, targets), key=lambda item: item[0])
    for rank, share in enumerate(shares):
        sizes = [len(preds[i]["scores"]) for i in share or ()]
        faces = sum(len(targets[i]["boxes"]) for i in share or ())  # what was gathered is given back
        assert found[rank] == (rank, expected, counts, sum(sizes), faces)


def test_two_halves_merge():
    preds, targets = as_dicts(*some_images())
    one, two = (measured(WIDERFaceAP(["hard"]), preds[k::2], targets[k::2]) for k in (0, 1))
    one.merge_state(two)
    assert values(one) == values(measured(WIDERFaceAP(["hard"]), preds, targets))


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gts": []}, "one entry for each image, got 1, 0 and 1"),
        ({"preds": [torch.ones(2, 4)]}, r"preds\[0\] must be \(n, 5\) with rows x, y, w, h, score, got \(2, 4\)"),
        ({"gts": [torch.ones(4)]}, r"gts\[0\] must be \(n, 4\)"),
        ({"preds": [torch.tensor([[0, 0, 1, 1, torch.nan]])]}, r"preds\[0\] has NaN or infinity; leave"),
        ({"gts": [torch.full((1, 4), torch.inf)]}, r"gts\[0\] has NaN"),
        ({"keeps": [torch.ones(2)]}, r"keeps\[0\] must be \(1,\), one flag for each face, got \(2,\)"),
        ({"keeps": [torch.tensor([3])]}, r"keeps\[0\] must be bool"),
        ({"iou_threshold": 0.0}, "iou_threshold must be above 0 and at most 1, got 0.0"),
        ({"num_thresholds": 0}, "num_thresholds must be 1 or more, got 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"preds": [torch.ones(2, 5)], "gts": [torch.ones(1, 4)], "keeps": [torch.ones(1)]}
    wider_face_ap(**good)
    with pytest.raises(ValueError, match=message):
        wider_face_ap(**good | change)


@pytest.mark.parametrize("levels", ["easy", ["easy", "easy"], ["all"], list(map(str, range(31)))])
def test_levels_that_cannot_be_are_named(levels):
    with pytest.raises(ValueError, match="levels must be a list of up to 30 different names"):
        WIDERFaceAP(levels)


def test_thirty_levels_do_not_mix():
    preds, gts, _ = some_images(5)
    keeps = {str(k): [torch.arange(len(gt)) == k % 4 for gt in gts] for k in range(30)}
    found = values(measured(WIDERFaceAP(list(keeps)), *as_dicts(preds, gts, keeps)))
    for name, keep in keeps.items():
        assert_close(found[name], float(wider_face_ap(preds, gts, keep).ap), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        ({}, {"keep_hard": None}, "lacks 'keep_hard'.*say levels=.. and read 'all'"),
        ({}, {"keep_hard": torch.ones(3)}, r"targets\[1\]\['keep_hard'\] must be \(1,\)"),
        ({}, {"boxes": torch.full((1, 4), torch.nan)}, r"targets\[1\]\['boxes'\] has NaN"),
        ({"scores": torch.ones(3)}, {}, r"preds\[1\]\['scores'\] must be \(2,\), as many as boxes, got \(3,\)"),
        ({"boxes": torch.ones(2, 5)}, {}, r"preds\[1\]\['boxes'\] must be \(n, 4\) with rows x1, y1, x2, y2"),
    ],
)
def test_bad_images_are_named_and_leave_nothing_behind(pred, target, message):
    preds = [{"boxes": torch.ones(2, 4), "scores": torch.ones(2)} | change for change in ({}, pred)]
    targets = [{"boxes": torch.ones(1, 4), "keep_hard": torch.ones(1)} | change for change in ({}, target)]
    targets = [{name: part for name, part in each.items() if part is not None} for each in targets]
    metric = WIDERFaceAP(["hard"])
    with pytest.raises(ValueError, match=message):
        metric.update(preds, targets)
    assert not metric.scores
    assert metric.faces.tolist() == [0, 0]
    with pytest.raises(ValueError, match="preds has 1 images and targets 2"):
        metric.update(preds[:1], targets)
