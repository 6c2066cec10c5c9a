"""Scores, selection, files and the paper's counter."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_methods.backbones import PrunePlan, PrunePoint, build_backbone, prune_model, prune_points
from lit_methods.hrank.functional import (
    batch_ranks,
    build_plan,
    feature_map_rank,
    hrank_counter,
    load_rank_scores,
    parse_compress_rate,
    prune_count,
    rank_scores,
    save_rank_scores,
    select_filters,
)
from tests.hrank_vectors import FILES, GOOGLENET_B, RATES, fill, fill_input, random_plan

HOOKED = {"vgg16_bn_cifar": 4, "resnet56": 2, "densenet40_cifar": 2, "googlenet_cifar": 1, "resnet50": 1}


@pytest.mark.parametrize("arch", list(HOOKED))
def test_scores_at_the_official_hook_points(arch, vectors):
    reference = np.load(vectors / "hrank" / "hook_ranks.npz")
    model = fill(build_backbone(arch, 1000 if arch == "resnet50" else 10), damped=arch.startswith("resnet"))
    points = {p.conv: p for p in prune_points(arch) if f"{FILES[arch]}_conv{p.group}_mean_rank" in reference}
    assert {p.group for p in points.values()} == {
        key.split("_conv")[1].split("_")[0] for key in reference if key.startswith(FILES[arch])
    }
    side = 224 if arch == "resnet50" else 32
    scores = rank_scores(model, [fill_input((HOOKED[arch], 3, side, side))], list(points.values()))
    assert list(scores) == list(points)
    for conv, score in scores.items():
        expected = reference[f"{FILES[arch]}_conv{points[conv].group}_mean_rank"]
        if arch == "googlenet_cifar":  # the vectors hold the whole concatenation
            expected = expected[slice(*points[conv].channels)]
        assert score.dtype == torch.float64
        np.testing.assert_allclose(score, expected, rtol=0, atol=1e-12, err_msg=conv)


def loop_scores(model, images, points):
    """Independent: one forward pass per point, one NumPy rank per map."""
    scores = {}
    for point in points:
        maps = []
        handle = model.get_submodule(point.module).register_forward_hook(lambda _, __, y, maps=maps: maps.append(y))
        with torch.no_grad():
            model(images)
        handle.remove()
        part = maps[0].numpy()[:, slice(*point.channels)]
        scores[point.conv] = np.mean([[np.linalg.matrix_rank(m) for m in image] for image in part], axis=0)
    return scores


def test_scores_equal_a_plain_loop_for_any_batches():
    model, points = fill(build_backbone("resnet20")), prune_points("resnet20")
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = loop_scores(model.eval(), images, points)
    for batches, max_bytes in ((images.split(5), 2**26), (images.split(2), 1), (images.split([1, 0, 4]), 10**6)):
        scores = rank_scores(model, batches, points, max_bytes=max_bytes)
        assert scores.keys() == expected.keys()
        for conv in expected:
            np.testing.assert_allclose(scores[conv], expected[conv], rtol=1e-12, err_msg=conv)


def test_model_is_left_alone_between_and_after_batches():
    model, points = build_backbone("resnet20").train(), prune_points("resnet20")
    model.layer2.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]

    def unchanged():
        assert [part.training for part in model.modules()] == modes
        assert not any(part._forward_hooks for part in model.modules())
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return True

    ranks = batch_ranks(model, torch.randn(3, 2, 3, 8, 8), points)
    first = next(ranks)
    assert unchanged()
    assert first["conv1"].shape == (2, 16)
    assert first["conv1"].dtype == torch.int64
    assert len(list(ranks)) == 2
    assert unchanged()
    with pytest.raises(RuntimeError):
        rank_scores(model, [torch.randn(1, 4, 8, 8)], points)
    assert unchanged()


def test_shared_maps_are_ranked_once(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lit_methods.hrank.functional.feature_map_rank", lambda maps: seen.append(maps.shape) or feature_map_rank(maps)
    )
    points = [p for p in prune_points("resnet50") if p.conv.startswith("layer1.0")]
    scores = rank_scores(build_backbone("resnet50"), [torch.randn(1, 3, 32, 32)], points)
    assert len(points) == 4
    assert len(seen) == 3
    assert torch.equal(scores["layer1.0.conv3"], scores["layer1.0.downsample.0"])


def test_working_copy_is_bounded(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lit_methods.hrank.functional.feature_map_rank", lambda maps: seen.append(len(maps)) or feature_map_rank(maps)
    )
    points = prune_points("resnet20")[:1]
    per_image = 16 * 3 * 8 * 8 * 8
    rank_scores(build_backbone("resnet20"), [torch.randn(7, 3, 8, 8)], points, max_bytes=3 * per_image)
    assert seen == [3, 3, 1]


def test_scores_do_not_depend_on_autocast():
    net = nn.Sequential(nn.Identity())
    images = torch.randn(2, 3, 16, 16)
    point = [PrunePoint("0", "1", "0", (0, 3))]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rank_scores(net, [images], point)["0"], torch.full((3,), 16.0, dtype=torch.float64))


def test_points_that_do_not_fit():
    model, images = build_backbone("resnet20"), [torch.randn(1, 3, 8, 8)]
    with pytest.raises(ValueError, match=r"'layer1\.0\.relu9', which the model.*did you mean 'layer1\.0\.relu"):
        rank_scores(model, images, [PrunePoint("conv1", "1", "layer1.0.relu9", (0, 16))])
    with pytest.raises(ValueError, match="holds no image"):
        rank_scores(model, [], prune_points("resnet20"))
    thin = prune_model(model, PrunePlan("resnet20", {"layer1.0.conv1": [0]}))
    with pytest.raises(ValueError, match=r"'layer1\.0\.relu1' puts out \(1, 1, 8, 8\).*rank before pruning"):
        rank_scores(thin, images, prune_points("resnet20"))
    relu = nn.ReLU()
    twice = nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu)
    with pytest.raises(ValueError, match="'0' is called more than once"):
        rank_scores(twice, images, [PrunePoint("1", "1", "0", (0, 3))])
    silent = nn.Sequential(nn.Conv2d(3, 3, 1))
    silent[0].spare = nn.Identity()
    with pytest.raises(ValueError, match=r"'0\.spare' was not called"):
        rank_scores(silent, images, [PrunePoint("0", "1", "0.spare", (0, 3))])


def test_selection_of_the_vectors(vectors):
    reference = np.load(vectors / "hrank" / "select.npz")
    cases = [key[:-5] for key in reference if key.endswith("_rank")]
    assert len(cases) >= 5
    for case in cases:
        scores, rate = torch.from_numpy(reference[f"{case}_rank"]), float(reference[f"{case}_rate"])
        keep = select_filters(scores, rate)
        np.testing.assert_array_equal(keep, reference[f"{case}_keep"], err_msg=case)
        assert len(keep) == len(scores) - prune_count(len(scores), rate)


@pytest.mark.parametrize(("prefix", "file"), [("vgg", "ranks_vgg_16_bn"), ("r56", "ranks_resnet_56_first6")])
def test_selection_from_the_published_ranks(prefix, file, vectors, shared):
    reference = np.load(vectors / "hrank" / "select.npz")
    ranks = np.load(shared / "vectors" / "hrank" / f"{file}.npz")
    for key in ranks:
        name = f"{prefix}_{key[5:]}"
        keep = select_filters(torch.from_numpy(ranks[key]), float(reference[f"{name}_rate"]))
        np.testing.assert_array_equal(keep, reference[f"{name}_keep"], err_msg=name)


def test_selection_by_hand_and_mistakes():
    assert prune_count(12, 0.7) == 8
    assert prune_count(100, 0.29) == 28  # the float product is 28.999...
    assert prune_count(16, 0.6) == 9
    assert select_filters(torch.full((5,), 2.0), 0.5).tolist() == [2, 3, 4]
    assert select_filters(torch.tensor([1.0, 0.0, 1.0, 2.0]), 0.99).tolist() == [3]
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"lies in \[0, 1\), got"):
            prune_count(4, rate)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\), got 1.0"):
        parse_compress_rate("[0.5]+[1.0]")
    for scores in (torch.zeros(2, 2), torch.zeros(0), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ValueError, match=r"scores must be a vector"):
            select_filters(scores, 0.5)


def test_plan_from_scores():
    scores = {p.conv: torch.randn(p.num_filters) for p in prune_points("resnet56")}
    rates = parse_compress_rate(RATES["resnet56"])
    plan = build_plan("resnet56", scores, rates)
    for (conv, score), rate in zip(scores.items(), rates, strict=True):
        order = np.argsort(score.numpy(), kind="stable")[int(rate * len(score)) :]
        assert plan.keep.get(conv, list(range(len(score)))) == sorted(order.tolist())
    assert "layer2.8.conv2" not in plan.keep  # rate 0
    assert plan.to_dict()["residual"] == "live"


def test_one_rate_per_googlenet_stage():
    points = prune_points("googlenet_cifar")
    scores = {p.conv: torch.arange(float(p.num_filters)) for p in points}
    keep = build_plan("googlenet_cifar", scores, parse_compress_rate(RATES["googlenet_cifar"])).keep
    counts = {p.number: len(keep[p.conv]) for p in points}
    assert [counts[f"6_{b}"] for b in ("n1x1", "n3x3", "n5x5", "pool_planes")] == [26, 52, 13, 13]  # c4: its own 0.8
    assert [counts[f"7_{b}"] for b in ("n1x1", "n3x3", "n5x5", "pool_planes")] == [17, 44, 10, 10]
    assert keep["stages.a3.n5x5.conv2"] == keep["stages.a3.n5x5.conv3"]


def test_rates_that_do_not_fit():
    scores = {p.conv: torch.zeros(p.num_filters) for p in prune_points("vgg16_bn_cifar")}
    with pytest.warns(UserWarning, match="last 1 of 13 rates"):
        plan = build_plan("vgg16_bn_cifar", scores, [0.5] * 13)
    assert plan == build_plan("vgg16_bn_cifar", scores, [0.5] * 12)
    for count in (11, 14):
        with pytest.raises(ValueError, match=f"vgg16_bn_cifar takes 12 rates, got {count}"):
            build_plan("vgg16_bn_cifar", scores, [0.5] * count)
    with pytest.raises(ValueError, match=r"googlenet_cifar takes 10 rates, got 13; .* per convolution stage"):
        build_plan("googlenet_cifar", {}, [0.5] * 13)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\), got 1"):
        build_plan("vgg16_bn_cifar", scores, [0.5] * 11 + [1])
    with pytest.raises(ValueError, match=r"scores of 'features.conv1' must have shape \(64,\), got none"):
        build_plan("vgg16_bn_cifar", {}, [0.5] * 12)
    with pytest.raises(ValueError, match=r"must have shape \(64,\), got \(3,\)"):
        build_plan("vgg16_bn_cifar", {"features.conv1": torch.zeros(3)}, [0.5] + [0.0] * 11)
    assert build_plan("vgg16_bn_cifar", {}, [0.0] * 12).keep == {}
    with pytest.raises(ValueError, match="unknown arch 'vgg'"):
        build_plan("vgg", scores, [0.5])


def test_score_file_round_trip(tmp_path):
    scores = {p.conv: torch.rand(p.num_filters, dtype=torch.float64) for p in prune_points("resnet20")}
    save_rank_scores(tmp_path / "scores", scores)
    loaded = load_rank_scores(tmp_path / "scores", "resnet20")
    assert loaded.keys() == scores.keys()
    assert all(torch.equal(loaded[conv], scores[conv]) for conv in scores)
    with pytest.raises(ValueError, match=r"scores of 'conv1', which vgg16_bn_cifar does not prune"):
        load_rank_scores(tmp_path / "scores", "vgg16_bn_cifar")
    save_rank_scores(tmp_path / "short.npz", {"conv1": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"scores of 'conv1' must have shape \(16,\), got \(3,\)"):
        load_rank_scores(tmp_path / "short.npz", "resnet20")
    with pytest.raises(FileNotFoundError):
        load_rank_scores(tmp_path / "none.npz", "resnet20")


def test_official_folder(tmp_path):
    for point in prune_points("googlenet_cifar"):
        values = np.arange(point.num_filters, dtype=np.float32) + int(point.group)
        np.save(tmp_path / f"rank_conv{point.number}.npy", values)
    scores = load_rank_scores(tmp_path, "googlenet_cifar")
    assert scores["stages.b3.n3x3.conv2"][0] == 3
    assert torch.equal(scores["stages.a3.n5x5.conv2"], scores["stages.a3.n5x5.conv3"])
    assert {value.dtype for value in scores.values()} == {torch.float64}
    (tmp_path / "rank_conv4_n5x5.npy").unlink()
    with pytest.raises(ValueError, match=r"incomplete for googlenet_cifar: no rank_conv4_n5x5\.npy$"):
        load_rank_scores(tmp_path, "googlenet_cifar")


def test_published_vgg_arrays(tmp_path, shared):
    ranks = np.load(shared / "vectors" / "hrank" / "ranks_vgg_16_bn.npz")
    for key in ranks:
        np.save(tmp_path / f"{key}.npy", ranks[key])
    scores = load_rank_scores(tmp_path, "vgg16_bn_cifar")
    plan = build_plan("vgg16_bn_cifar", scores, parse_compress_rate(RATES["vgg16_bn_cifar"]))
    reference = np.load(shared / "vectors" / "hrank" / "select.npz")
    for i in range(1, 13):
        assert plan.keep[f"features.conv{i}"] == reference[f"vgg_conv{i}_keep"].tolist()


@pytest.mark.parametrize("arch", list(FILES))
def test_counter_of_the_paper(arch, vectors):
    reference = np.load(vectors / "hrank" / "counts.npz")
    name, size = FILES[arch], (3, 224, 224) if arch == "resnet50" else (3, 32, 32)
    model = build_backbone(arch, 1000 if arch == "resnet50" else 10)
    plan = random_plan(arch, RATES[arch])
    assert hrank_counter(model, None, size) == tuple(reference[f"{name}_counter_base_flops_params"])
    assert hrank_counter(model, PrunePlan(arch, {}), size) == tuple(reference[f"{name}_counter_base_flops_params"])
    expected = tuple(reference[f"{name}_counter_pruned_flops_params"])
    if arch == "googlenet_cifar":  # the official figure takes d4's rate for c4; here c4 has its own
        assert expected == (450_061_322, 1_858_262)
        expected = (455_683_082, 1_880_250)
        other = random_plan(arch, GOOGLENET_B)
        assert hrank_counter(model, other) == tuple(reference["googlenet_alt_counter_pruned_flops_params"])
    assert hrank_counter(model, plan, size) == expected
    assert sum(p.numel() for p in model.parameters()) == reference[f"{name}_all_params"]


def test_rates_of_the_vectors_are_the_published_ones(vectors):
    reference = np.load(vectors / "hrank" / "counts.npz")
    for arch, name in FILES.items():
        rates = parse_compress_rate(RATES[arch])
        assert rates == reference[f"{name}_rates"].tolist()[: len(rates)]


@pytest.mark.parametrize(
    ("arch", "rates", "macs", "params"),
    [
        ("resnet110", "[0.1]+[0.70]*36+[0.70]*36+[0.70]*36", 79.30e6, 0.538e6),
        ("resnet50", "[0.2]+[0.80]*10+[0.80]*13+[0.80]*19+[0.70]*10", 981.26e6, 8.269e6),
    ],
)
def test_counter_on_the_further_rows(arch, rates, macs, params):
    model = build_backbone(arch, 1000 if arch == "resnet50" else 10)
    size = (3, 224, 224) if arch == "resnet50" else (3, 32, 32)
    got = hrank_counter(model, random_plan(arch, rates), size)
    assert got[0] == pytest.approx(macs, abs=0.005e6)
    assert got[1] == pytest.approx(params, abs=0.0005e6)


def test_counter_refuses_a_pruned_network():
    plan = PrunePlan("resnet20", {"conv1": [0, 1]})
    with pytest.raises(ValueError, match="model is pruned already"):
        hrank_counter(build_backbone("resnet20", plan=plan), plan)
    with pytest.raises(ValueError, match="plan is for arch 'resnet20', which has no layer"):
        hrank_counter(build_backbone("resnet56"), plan)


def test_dead_filters_go_first():
    model = build_backbone("resnet20")
    with torch.no_grad():
        model.layer1[0].bn1.weight[[2, 7]] = 0
        model.layer1[0].bn1.bias[[2, 7]] = -1
    points = [p for p in prune_points("resnet20") if p.conv == "layer1.0.conv1"]
    scores = rank_scores(model, [torch.randn(2, 3, 16, 16)], points)["layer1.0.conv1"]
    assert scores[[2, 7]].tolist() == [0, 0]
    assert select_filters(scores, 0.125).tolist() == [i for i in range(16) if i not in (2, 7)]
