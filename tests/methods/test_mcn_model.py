"""MCN's network: counts of the official code, the parts that sentences share, and edges of the batch."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from lit_methods.mcn.model import MCN_BACKBONES, MCNet

SMALL = {"word_dim": 6, "hidden": 16, "dim": 8}


def small(**options):
    net = MCNet("tiny", **SMALL | options)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):  # a wrong use of one that is zero would not show
            nn.init.uniform_(parameter, -0.2, 0.2)
    return net.eval()


@cache
def on_meta(backbone):
    with torch.device("meta"):
        return MCNet(backbone).eval()


def numbers(*parts):
    """As Keras counts: running statistics, too, and one bias in each gate of the GRU."""
    total = 0
    for part in parts:
        total += sum(parameter.numel() for parameter in part.parameters())
        norms = [x for x in part.modules() if isinstance(x, nn.BatchNorm1d | nn.BatchNorm2d)]
        total += sum(2 * norm.num_features for norm in norms)
        total -= sum(6 * x.hidden_size for x in part.modules() if isinstance(x, nn.GRU))
    return total


def joined(block, *maps):
    return F.leaky_relu(block.norm(F.conv2d(torch.cat(maps, 1), block.conv.weight)), 0.1)


def plain(net, image, words, attend=None):
    """Section 2.2 as it is written: every map is enlarged and laid beside the other before its convolution."""
    attend = attend or (lambda garan, v, q: garan(v, q))

    def up(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    f_t = net.encoder(words)
    v1, v2, v3 = net.backbone(image)
    language = F.leaky_relu(net.fusion.language_norm(net.fusion.linear(f_t)), 0.1)[..., None, None]
    fused = F.leaky_relu(net.fusion.norm((v1 + net.fusion.branch(v1)) * language), 0.1)
    u2 = joined(net.top_down.join_middle, up(fused), net.top_down.middle(v2))
    u3 = joined(net.top_down.join_fine, up(u2), net.top_down.fine(v3))
    f_s, attn_s = attend(net.garan_s, u3, f_t)
    pool = net.decoder.pool(F.adaptive_avg_pool2d(f_s, 1)).expand(-1, -1, *f_s.shape[2:])
    seg_logits = net.decoder.out(torch.cat([pool, *(branch(f_s) for branch in net.decoder.branches)], 1))
    up_again = net.bottom_up
    b2 = torch.cat([up_again.down_middle(F.avg_pool2d(f_s, 2)), u2], 1)
    b1 = torch.cat([up_again.down_coarse(F.avg_pool2d(joined(up_again.join_middle, b2), 2)), fused], 1)
    f_c, attn_c = attend(net.garan_c, joined(up_again.join_coarse, b1), f_t)
    return {"rec_raw": net.rec(f_c), "seg_logits": seg_logits, "attn_s": attn_s, "attn_c": attn_c}


def test_every_block_has_the_official_codes_number_of_parameters():
    net = on_meta("darknet53")
    assert numbers(net.backbone) == 56_367_712
    assert numbers(net.encoder.gru) == 8_140_800
    assert numbers(net.encoder.attention) == 1_049_600
    assert numbers(net.fusion) == 6_306_816
    assert numbers(net.top_down) == 1_514_496
    assert numbers(net.garan_s) == numbers(net.garan_c) == 330_752
    assert numbers(net.decoder) == 3_807_489
    assert numbers(net.bottom_up) == 3_942_400
    assert numbers(net.rec) == 7_695
    assert numbers(net.cem_s, net.cem_c) == 1_026


@pytest.mark.parametrize(
    ("backbone", "total", "frozen", "trained", "frozen_convs"),
    [
        ("darknet53", 81_799_538, 51_118_688, 30_657_298, (56, 58)),
        ("vgg16", 55_960_146, 25_476_928, 30_460_178, (18, 19)),
    ],
)
def test_all_frozen_and_trained_parameters_are_the_official_codes(backbone, total, frozen, trained, frozen_convs):
    net = on_meta(backbone)
    part = net.frozen_part()
    assert numbers(net) == total
    assert numbers(*part) == frozen
    ours = {parameter for module in part for parameter in module.parameters()}
    second_biases = 6 * net.encoder.gru.hidden_size
    assert sum(x.numel() for x in net.parameters() if x not in ours) - second_biases == trained
    convs = [sum(isinstance(x, nn.Conv2d) for x in root.modules()) for root in (nn.ModuleList(part), net.backbone)]
    assert tuple(convs) == frozen_convs


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "whole", "alone"), [("darknet53", 42.24, 27.17), ("vgg16", 71.49, 55.54)])
def test_the_plain_form_costs_the_official_codes_multiply_adds(backbone, whole, alone):
    net = on_meta(backbone)
    image, words = torch.empty(1, 3, 416, 416, device="meta"), torch.empty(1, 15, 300, device="meta")

    def count(call):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops() / 2

    assert round(count(lambda: net.backbone(image)) / 1e9, 2) == alone
    macs = count(lambda: plain(net, image, words, attend=lambda garan, v, q: (v, v)))
    for cells in (52 * 52, 13 * 13):  # GARAN's layers as the figure counts them: once, though both heads use them
        macs += 3 * 256 * 256 * cells + 512 * 256
    assert round(macs / 1e9, 2) == whole
    once, each = count(lambda: net.visual(image)), count(lambda: net(image, words))
    assert each < macs
    assert once + 3 * (each - once) < 3 * macs / 1.9


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_the_outputs_are_those_of_the_plain_form(size):
    net = small().double()
    image, words = torch.rand(2, 3, *size, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    found, wanted = net(image, words), plain(net, image, words)
    assert found.keys() == wanted.keys()
    height, width = (side // 32 for side in size)
    assert found["rec_raw"].shape == (2, 15, height, width)
    assert found["seg_logits"].shape == (2, 1, 4 * height, 4 * width)
    for name, value in found.items():
        assert value.std() > 1e-4, name
        assert_close(value, wanted[name], rtol=1e-6, atol=1e-9, msg=name)


def test_gradients_are_those_of_the_plain_form():
    net = small(dropout=0.0).double().train()
    image, words = torch.rand(2, 3, 64, 64, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64)
    used = {name: x for name, x in net.named_parameters() if not name.startswith("cem_")}
    found, wanted = (
        torch.autograd.grad(sum(x.square().sum() for x in out.values()), list(used.values()))
        for out in (net(image, words), plain(net, image, words))
    )
    for name, a, b in zip(used, found, wanted, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-9, msg=name)


def test_sentences_about_one_image_share_what_was_seen():
    net = small()
    image, words = torch.rand(2, 3, 64, 96), torch.randn(5, 4, 6)
    index = torch.tensor([0, 0, 0, 1, 1])
    with torch.no_grad():
        shared = net.ground(net.visual(image).rows(index), net.language(words))
        apart = net(image[index], words)
    for name, value in shared.items():
        assert_close(value, apart[name], rtol=1e-5, atol=1e-5, msg=name)
    assert (apart["seg_logits"][0] - apart["seg_logits"][1]).abs().max() > 1e-4  # sentences do differ


def test_a_frozen_part_keeps_nothing_for_gradients():
    net = small()
    for part in net.frozen_part():
        part.requires_grad_(False)
    seen = []
    net.backbone.stem.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    image, words = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 6)
    sum(x.sum() for x in net(image, words).values()).backward()
    learning = {name for name, x in net.named_parameters() if x.grad is not None}
    wanted = {name for name, x in net.named_parameters() if x.requires_grad and not name.startswith("cem_")}
    assert learning == wanted
    assert {name.split(".")[2] for name in learning if name.startswith("backbone.")} == {"4", "5"}
    image.requires_grad_(True)
    net(image, words)["rec_raw"].sum().backward()
    assert image.grad is not None  # an image that wants a gradient gets one
    assert image.grad.any()
    next(net.backbone.stem.parameters()).requires_grad_(True)
    net(image.detach(), words)
    assert seen == [False, True, True]


def test_one_image_can_be_trained_on():
    net = small().train()
    before = {name: x.clone() for name, x in net.named_buffers()}
    out = net(torch.rand(1, 3, 64, 64), torch.randn(1, 4, 6))
    sum(x.square().sum() for x in out.values()).backward()
    assert all(x.grad.isfinite().all() for name, x in net.named_parameters() if not name.startswith("cem_"))
    changed = {name for name, x in net.named_buffers() if not torch.equal(before[name], x)}
    alone = ("fusion.language_norm.", "decoder.pool.norm.")  # one value per channel says nothing about its spread
    assert {name for name in before if name not in changed} == {name for name in before if name.startswith(alone)}


def test_two_images_move_all_running_statistics():
    net = small().train()
    before = {name: x.clone() for name, x in net.named_buffers()}
    net(torch.rand(2, 3, 64, 64), torch.randn(2, 4, 6))
    assert not [name for name, x in net.named_buffers() if torch.equal(before[name], x)]


def test_an_empty_batch_gives_empty_maps():
    with torch.no_grad():
        out = small()(torch.zeros(0, 3, 64, 64), torch.zeros(0, 4, 6))
    assert {name: tuple(x.shape) for name, x in out.items()} == {
        "rec_raw": (0, 15, 2, 2),
        "seg_logits": (0, 1, 8, 8),
        "attn_s": (0, 8, 8, 8),
        "attn_c": (0, 8, 2, 2),
    }


def test_weights_begin_as_in_keras():
    net = MCNet("tiny", **SMALL, bn_momentum=0.25)
    for name, parameter in net.named_parameters():
        if name.endswith("bias") or "bias_" in name:
            assert not parameter.any(), name
    weight = net.decoder.branches[1].conv.weight  # 8 to 4 channels, 3x3
    limit = (6 / (9 * 8 + 9 * 4)) ** 0.5
    assert 0.9 * limit < weight.abs().max() <= limit
    for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
        recurrent = getattr(net.encoder.gru, name)
        assert_close(recurrent.T @ recurrent, torch.eye(16), rtol=0, atol=1e-5)
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.25, 1e-3)}


def test_the_small_backbone_is_small():
    assert set(MCN_BACKBONES) == {"darknet53", "vgg16", "tiny"}
    backbone = MCN_BACKBONES["tiny"]()
    assert backbone.channels == (128, 64, 32)
    assert [tuple(x.shape[1:]) for x in backbone(torch.zeros(1, 3, 64, 96))] == [(128, 2, 3), (64, 4, 6), (32, 8, 12)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "darknet5"}, "backbone='darknet5' is none of MCN's; did you mean 'darknet53'"),
        ({"dim": 7}, "dim=7 must be even"),
        ({"hidden": 0}, "hidden=0 must be at least 1"),
        ({"num_heads": 3}, "num_heads=3 must divide dim=8"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MCNet(**({"backbone": "tiny"} | SMALL | arguments))


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 32, got \(1, 3, 64, 70\)"):
        small().visual(torch.zeros(1, 3, 64, 70))
