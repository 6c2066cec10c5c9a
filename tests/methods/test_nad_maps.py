"""Activation maps and what is made of them, against the official code's figures and plain loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.nad.maps import activation_map, focus_mask, overlay_focus, quadrant_hit_rate

FILES = {"cam_1x1_lanczos": "lanczos", "cam_2x2_bicubic": "bicubic"}


@pytest.fixture(params=FILES)
def official(request, vectors):
    with np.load(vectors / "nad" / f"{request.param}.npz") as file:
        return dict(file) | {"resample": FILES[request.param]}


def official_focus(official):
    return torch.from_numpy(np.unpackbits(official["focus"]).astype(bool).reshape(224, 224))


def test_map_is_the_official_one(official):
    found = activation_map(torch.from_numpy(official["feature"]), 224, official["resample"])
    assert found.shape == (224, 224)
    assert found.dtype == torch.float64
    levels = (found * 255).round()
    assert torch.equal(levels / 255, found)
    assert np.abs(levels.numpy() - official["cam_u8"]).max() <= 1
    assert np.array_equal(levels.numpy(), official["cam_u8"])  # summed in the same order


def test_map_does_not_depend_on_how_the_features_lie_in_memory(official):
    feature = torch.from_numpy(official["feature"])
    strided = feature.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as channels_last has it
    assert strided.stride() != feature.stride()
    assert torch.equal(
        activation_map(strided, 224, official["resample"]), activation_map(feature, 224, official["resample"])
    )


def test_channels_are_added_one_after_the_other_however_they_lie_in_memory():
    feature = torch.zeros(129, 2, 2)
    feature[0] = torch.tensor([[2.0**24 - 8, 2.0**24 + 8], [2.0**24, 2.0**24 - 8]])
    feature[1:, 1, 0] = 1.0  # lost one by one in float32, 128 when they are added first
    expected = torch.tensor([[0.0, 255.0], [127.0, 0.0]], dtype=torch.float64)
    for laid in (feature, feature.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert torch.equal(activation_map(laid, 2).mul(255).round(), expected)


def test_focus_is_the_official_one(official):
    found = focus_mask(torch.from_numpy(official["cam_u8"] / 255.0), float(official["rate"]))
    assert torch.equal(found, official_focus(official))
    assert int(found.sum()) == int(official["focus_count"])
    assert int(found.sum()) < int(official["k"]) == int(float(official["rate"]) * 224 * 224)


def test_focus_and_hits_of_the_whole_way_are_the_official_ones(official):
    found = focus_mask(
        activation_map(torch.from_numpy(official["feature"]), 224, official["resample"]), float(official["rate"])
    )
    expected = official_focus(official)
    assert (found & expected).sum() / (found | expected).sum() > 0.99
    hit = quadrant_hit_rate(found)
    assert hit.dtype == torch.float64
    assert_close(hit, torch.from_numpy(official["hit"]), rtol=0, atol=0.01)
    assert_close(quadrant_hit_rate(expected), torch.from_numpy(official["hit"]), rtol=0, atol=1e-12)


def test_overlay_is_the_official_one(official):
    image, focus = official["image_corner"], official_focus(official)[:64, 160:]
    found = overlay_focus(image, focus)
    assert np.abs(found.astype(int) - official["overlay_corner"]).max() <= 1
    assert np.array_equal(found[focus], image[focus])


def test_map_is_stretched_from_0_to_255_whatever_the_scale_of_the_features():
    feature = torch.rand(5, 8, 8)
    found = activation_map(feature, 8)
    assert found.min() == 0
    assert found.max() == 1
    assert torch.equal(activation_map(feature * 4, 8), found)  # a power of two rounds nothing
    total = feature.sum(0)
    expected = (total - total.min()) / (total.max() - total.min())
    assert (found - expected).abs().max() < 1.01 / 255


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64])
def test_map_takes_features_of_any_type_and_leaves_them(dtype):
    feature = (torch.rand(3, 4, 4) * 8).to(dtype)
    before = feature.clone()
    assert torch.equal(activation_map(feature, 16), activation_map(feature.float(), 16))
    assert torch.equal(feature, before)


def test_map_takes_features_that_want_gradients():
    found = activation_map(torch.rand(3, 4, 4, requires_grad=True), 8)
    assert not found.requires_grad


@pytest.mark.parametrize("feature", [torch.zeros(3, 4, 4), torch.full((1, 7, 7), 2.5), torch.rand(3, 1, 1)])
def test_a_map_without_contrast_is_zero_and_has_no_focus(feature):
    found = activation_map(feature, 12)
    assert found.shape == (12, 12)
    assert not found.any()
    assert not focus_mask(found, 0.1).any()
    assert quadrant_hit_rate(focus_mask(found, 0.1)).isnan().all()


def test_focus_holds_what_is_strictly_above_the_kth_largest():
    values = torch.randperm(400, generator=torch.Generator().manual_seed(1)).view(20, 20).double()
    for rate, k in ((0.1, 40), (0.05, 20), (0.999, 399), (1.0, 400), (1 / 400, 1)):
        kth = sorted(values.flatten().tolist(), reverse=True)[k - 1]
        found = focus_mask(values, rate)
        assert found.dtype == torch.bool
        assert torch.equal(found, values > kth)
        assert found.sum() == k - 1


def test_ties_at_the_kth_pixel_stay_outside():
    values = torch.zeros(4, 4)
    values[0] = torch.tensor([3.0, 2.0, 2.0, 2.0])
    assert focus_mask(values, 3 / 16).sum() == 1
    assert focus_mask(values, 5 / 16).sum() == 4


def test_hits_are_the_shares_of_the_quarters_row_by_row():
    focus = torch.zeros(4, 6, dtype=torch.bool)
    focus[0, 0] = focus[1, 2] = focus[0, 3] = focus[3, 2] = True
    assert quadrant_hit_rate(focus).tolist() == [0.5, 0.25, 0.25, 0]
    for q in range(4):
        focus = torch.zeros(8, 8, dtype=torch.bool)
        focus[4 * (q // 2) + 3, 4 * (q % 2) + 3] = True
        assert quadrant_hit_rate(focus).tolist() == [float(i == q) for i in range(4)]
    assert quadrant_hit_rate(torch.ones(6, 4, dtype=torch.bool)).tolist() == [0.25] * 4


def test_hits_of_an_empty_focus_are_nan():
    assert quadrant_hit_rate(torch.zeros(4, 4, dtype=torch.bool)).isnan().tolist() == [True] * 4


@pytest.mark.parametrize("tensor", [True, False])
def test_overlay_darkens_a_copy_and_cuts_fractions_off(tensor):
    image = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(16, 16, 3).contiguous()
    focus = torch.rand(16, 16) > 0.5
    before = image.clone()
    found = overlay_focus(image, focus) if tensor else overlay_focus(image.numpy(), focus.numpy())
    assert isinstance(found, torch.Tensor if tensor else np.ndarray)
    found = torch.as_tensor(found)
    assert found.dtype == torch.uint8
    expected = torch.tensor(
        [
            [[v if f else int(0.2 * v)] * 3 for v, f in zip(row, inside, strict=True)]
            for row, inside in zip(image[..., 0].tolist(), focus.tolist(), strict=True)
        ]
    )
    assert torch.equal(found.long(), expected)
    found.zero_()
    assert torch.equal(image, before)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: activation_map(torch.ones(4, 4), 8), ["feat must be (C, h, w)", "(4, 4)"]),
        (lambda: activation_map(torch.ones(1, 3, 4, 4), 8), ["feat must be (C, h, w)", "(1, 3, 4, 4)"]),
        (lambda: activation_map(torch.ones(0, 4, 4), 8), ["feat must be (C, h, w)", "(0, 4, 4)"]),
        (lambda: activation_map(torch.ones(1, 4, 4), 8, "nearest"), ["resample='nearest'", "bicubic, lanczos"]),
        (lambda: activation_map(torch.full((1, 2, 2), float("nan")), 8), ["feat", "not finite"]),
        (lambda: activation_map(torch.tensor([[[0.0, float("inf")]]]), 8), ["feat", "not finite"]),
        (lambda: focus_mask(torch.ones(1, 4, 4), 0.1), ["map must be (H, W)", "(1, 4, 4)"]),
        (lambda: focus_mask(torch.ones(4, 4), 0.0), ["rate=0.0", "(0, 1]"]),
        (lambda: focus_mask(torch.ones(4, 4), 1.5), ["rate=1.5", "(0, 1]"]),
        (lambda: focus_mask(torch.ones(4, 4), -0.5), ["rate=-0.5"]),
        (lambda: focus_mask(torch.ones(4, 4), 0.01), ["rate=0.01", "one of the 16 pixels"]),
        (lambda: quadrant_hit_rate(torch.ones(4, 4, 1).bool()), ["focus must be (H, W)", "(4, 4, 1)"]),
        (lambda: quadrant_hit_rate(torch.ones(5, 4).bool()), ["focus", "even sides", "(5, 4)"]),
        (lambda: quadrant_hit_rate(torch.ones(4, 7).bool()), ["focus", "even sides", "(4, 7)"]),
        (lambda: overlay_focus(torch.ones(4, 4, 3), torch.ones(4, 4)), ["image must be", "uint8", "float32"]),
        (lambda: overlay_focus(np.ones((4, 4), np.uint8), np.ones((4, 4))), ["image must be (H, W, 3)", "(4, 4)"]),
        (lambda: overlay_focus(np.ones((4, 4, 3), np.uint8), np.ones((4, 5))), ["focus (H, W)", "(4, 5)"]),
    ],
)
def test_bad_arguments_are_named_with_their_cure(call, words):
    with pytest.raises(ValueError, match=r"must|finite") as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)
