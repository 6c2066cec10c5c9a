"""StarGAN between cameras: its losses against slow plain versions, and the steps of the pair of networks."""

import copy
import itertools
import math
import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from lit_methods.ad_cluster.camera_translation import (
    CameraTranslation,
    average_gradients,
    decayed_rate,
    draw_alpha,
    draw_targets,
    translation_step,
    without_gradients,
)
from lit_methods.ad_cluster.losses import cluster_diversity, diversity_loss
from lit_methods.ad_cluster.model import ReIDEncoder
from lit_methods.ad_cluster.star_gan import gradient_penalty, stargan_d_loss, stargan_g_loss


def small_pair(height=16, width=8, **options):
    torch.manual_seed(0)
    sizes = {"generator_width": 4, "num_blocks": 1, "discriminator_width": 4, "num_layers": 2}
    return CameraTranslation(3, height, width, **sizes | options)


def small_batch(count=4, height=16, width=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(count, 3, height, width, generator=generator, dtype=dtype)
    camid = torch.arange(count) % 3
    return image, camid, draw_targets(camid, 0, 0), draw_alpha(count, 0, 0)


def small_encoder():
    torch.manual_seed(2)
    return ReIDEncoder("tiny", width=4).eval().requires_grad_(False)


def copies(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_unchanged(network, before):
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def assert_all_changed(network, before):
    for key, parameter in network.named_parameters():
        assert not torch.equal(parameter, before[key]), key


# losses


def test_gradient_penalty_is_that_of_one_image_after_the_other():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)).double()
    real, fake = torch.rand(2, 5, 3, 8, 4, dtype=torch.float64)
    alpha = torch.rand(5, dtype=torch.float64)
    ours = gradient_penalty(critic, real, fake, alpha)
    slow = 0.0
    for x, y, share in zip(real, fake, alpha, strict=True):
        gradient = torch.func.jacrev(lambda z: critic(z[None]).flatten())(share * x + (1 - share) * y)
        slow += (math.sqrt((gradient.sum(0) ** 2).sum().item()) - 1) ** 2 / 5
    assert float(ours.detach()) == pytest.approx(slow, abs=1e-12)

    weight, step = critic[0].weight, 1e-5
    (gradient,) = torch.autograd.grad(ours, weight)
    for place in ((0, 0, 0, 0), (3, 2, 1, 2)):  # by finite differences, as no second derivative can be wrong there
        values = []
        for sign in (1, -1):
            moved = copy.deepcopy(critic)
            moved[0].weight.data[place] += sign * step
            values.append(float(gradient_penalty(moved, real, fake, alpha).detach()))
        assert float(gradient[place]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_gradient_penalty_of_a_flat_critic_is_one_with_a_finite_gradient():
    weight = torch.zeros(3, requires_grad=True)
    image = torch.rand(2, 3, 4, 4)
    penalty = gradient_penalty(lambda x: (weight[:, None, None] * x).sum((1, 2, 3)), image, 1 - image, torch.rand(2))
    penalty.backward()
    assert penalty == 1
    assert weight.grad.isfinite().all()


def test_gradient_penalty_reaches_neither_image_and_needs_no_gradients_switched_on():
    real, fake = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    scale = torch.ones((), requires_grad=True)
    with torch.no_grad():
        penalty = gradient_penalty(lambda x: scale * x.square().sum((1, 2, 3)), real, fake, torch.rand(2))
    penalty.backward()
    assert scale.grad.abs() > 0
    assert real.grad is None
    assert fake.grad is None


def test_losses_are_those_of_numpy():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 5, 1, 4, 2))
    logits, camera = rng.normal(size=(5, 3)), np.array([0, 2, 1, 1, 0])
    image, back = rng.normal(size=(2, 5, 3, 4, 2))
    cross_entropy = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, camera, strict=True)])
    t = torch.from_numpy
    d = stargan_d_loss(
        t(real), t(fake), t(logits), t(camera), torch.tensor(0.3).double(), cls_weight=2.0, gp_weight=5.0
    )
    assert float(d["loss"]) == pytest.approx(-real.mean() + fake.mean() + 2 * cross_entropy + 5 * 0.3, abs=1e-6)
    assert {k: float(v) for k, v in d.items() if k != "loss"} == pytest.approx(
        {"real": real.mean(), "fake": fake.mean(), "cls": cross_entropy, "gp": 0.3}
    )
    g = stargan_g_loss(t(fake), t(logits), t(camera), t(image), t(back), cls_weight=2.0, rec_weight=5.0)
    difference = np.abs(image - back).mean()
    assert float(g["loss"]) == pytest.approx(-fake.mean() + 2 * cross_entropy + 5 * difference, abs=1e-12)
    assert {k: float(v) for k, v in g.items() if k != "loss"} == pytest.approx(
        {"fake": fake.mean(), "cls": cross_entropy, "rec": difference}
    )


def test_weights_are_those_of_the_specification_by_default():
    one, camera = torch.ones(()), torch.tensor([0])
    d = stargan_d_loss(one, one, torch.zeros(1, 2), camera, one)
    assert_close(d["loss"], math.log(2) + 10 * one)
    image = torch.zeros(1, 3, 2, 2)
    assert_close(stargan_g_loss(0 * one, torch.zeros(1, 2), camera, image, image + 1)["loss"], math.log(2) + 10 * one)


def test_mistakes_in_losses_are_refused():
    image, one, camera = torch.zeros(2, 3, 4, 4), torch.ones(()), torch.tensor([0])
    with pytest.raises(ValueError, match="alpha one number per image"):
        gradient_penalty(lambda x: x, image, image, torch.zeros(3))
    with pytest.raises(ValueError, match=r"gp_weight=-1\.0 must not be negative"):
        stargan_d_loss(one, one, torch.zeros(1, 2), camera, one, gp_weight=-1.0)
    with pytest.raises(ValueError, match="reconstruction must have the shape of image"):
        stargan_g_loss(one, torch.zeros(1, 2), camera, image, image[:1])


# the pair


def test_translations_are_the_generators_in_the_range_of_images():
    pair = small_pair()
    image, camid, target, _ = small_batch()
    out = pair.translate(image, target)
    assert out.shape == image.shape
    assert 0 <= out.min() < out.max() <= 1
    assert_close(out, (pair.generator(image * 2 - 1, target) + 1) / 2)
    assert_close(pair.eval().translate(image, target), out)
    assert not torch.allclose(pair.translate(image, camid), out)
    assert pair.translate(image[:0], camid[:0]).shape == (0, 3, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert pair.translate(image, target).dtype == torch.float32


def test_losses_of_the_pair_put_the_formulas_together():
    pair = small_pair(cls_weight=2.0, rec_weight=3.0, gp_weight=4.0).double()
    image, camid, target, alpha = small_batch(dtype=torch.float64)
    x = image * 2 - 1
    score, logits = pair.discriminator(x)
    fake = pair.generator(x, target)
    fake_score, fake_logits = pair.discriminator(fake)
    penalty = gradient_penalty(lambda y: pair.discriminator(y)[0], x, fake, alpha)
    d = pair.discriminator_losses(image, camid, target, alpha)
    assert_close(d["loss"], -score.mean() + fake_score.mean() + 2 * cross_entropy(logits, camid) + 4 * penalty)
    g = pair.generator_losses(image, camid, target)
    rec = (x - pair.generator(fake, camid)).abs().mean()
    assert_close(g["loss"], -fake_score.mean() + 2 * cross_entropy(fake_logits, target) + 3 * rec)

    encoder = small_encoder().double()
    labels, centroids = torch.tensor([0, 1, -1, 1]), torch.zeros(2, 16, dtype=torch.float64)
    more = pair.generator_losses(
        image, camid, target, encode=encoder, labels=labels, centroids=centroids, lam=0.5, div_weight=7.0
    )
    features = encoder((fake + 1) / 2)
    assert_close(more["loss"], g["loss"] + 7 * diversity_loss(features, labels, centroids, lam=0.5))
    assert_close(more["diversity"], cluster_diversity(features, labels, centroids).detach())
    assert sorted(more) == ["cls", "div", "diversity", "fake", "loss", "rec"]
    assert [name for name, value in (d | more).items() if value.requires_grad] == ["loss"]


def cross_entropy(logits, label):
    return nn.functional.cross_entropy(logits, label)


def test_neither_loss_gives_gradients_to_the_other_network():
    pair = small_pair()
    image, camid, target, alpha = small_batch()
    pair.discriminator_losses(image, camid, target, alpha)["loss"].backward()
    assert all(p.grad is None for p in pair.generator.parameters())
    assert all(p.grad is not None for p in pair.discriminator.parameters())
    pair.zero_grad()
    pair.generator_losses(image, camid, target)["loss"].backward()
    assert all(p.grad is None for p in pair.discriminator.parameters())
    assert all(p.grad is not None for p in pair.generator.parameters())
    assert all(p.requires_grad for p in pair.parameters())


def test_parameters_take_gradients_again_after_an_error():
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    with without_gradients(layer):
        assert not layer.weight.requires_grad
    with pytest.raises(RuntimeError, match="shapes"), without_gradients(layer):
        layer(torch.zeros(1, 3))
    assert [p.requires_grad for p in layer.parameters()] == [True, False]


def test_the_generator_steps_after_every_fifth_step_of_the_discriminator():
    pair = small_pair()
    optimizers = pair.make_optimizers()
    batch = small_batch()
    stepped = []
    for step in range(10):
        before, d_before = copies(pair.generator), copies(pair.discriminator)
        logged = translation_step(pair, optimizers, step, *batch)
        assert_all_changed(pair.discriminator, d_before)
        if "g_loss" in logged:
            stepped.append(step)
            assert_all_changed(pair.generator, before)
            assert sorted(logged) == [
                "d_cls",
                "d_fake",
                "d_gp",
                "d_loss",
                "d_real",
                "g_cls",
                "g_fake",
                "g_loss",
                "g_rec",
            ]
        else:
            assert_unchanged(pair.generator, before)
        assert not any(value.requires_grad for value in logged.values())
    assert stepped == [4, 9]


def test_steps_are_those_that_the_losses_say():
    image, camid, target, alpha = small_batch(dtype=torch.float64)
    ours, plain = small_pair().double(), small_pair().double()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (ours.discriminator, ours.generator)]
    for step in range(4):
        translation_step(ours, optimizers, step, image, camid, target, alpha, n_critic=2)
        losses = [(plain.discriminator, lambda: plain.discriminator_losses(image, camid, target, alpha))]
        if step in (1, 3):
            losses.append((plain.generator, lambda: plain.generator_losses(image, camid, target)))
        for network, terms in losses:
            parameters = list(network.parameters())
            for parameter, gradient in zip(parameters, torch.autograd.grad(terms()["loss"], parameters), strict=True):
                parameter.data -= 0.1 * gradient
    assert_close(copies(ours), copies(plain), rtol=1e-8, atol=1e-10)


def test_the_optimizers_are_those_of_the_public_code():
    pair = small_pair()
    optimizers = pair.make_optimizers()
    for optimizer, network in zip(optimizers, (pair.discriminator, pair.generator), strict=True):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"]) == (1e-4, (0.5, 0.999))
        assert {id(p) for p in group["params"]} == {id(p) for p in network.parameters()}


def test_discriminator_steps_tell_real_from_generated_and_learn_the_cameras():
    pair = small_pair()
    optimizers = pair.make_optimizers(lr=2e-3)
    image, camid, target, _ = small_batch(6)
    image = image / 2 + camid[:, None, None, None] / 4  # brighter from camera to camera
    logged = [
        translation_step(pair, optimizers, step, image, camid, target, draw_alpha(6, step), n_critic=100)
        for step in range(40)
    ]
    assert logged[-1]["d_cls"] < 0.8 * logged[0]["d_cls"]
    gap = [float(terms["d_real"] - terms["d_fake"]) for terms in logged]
    assert gap[-1] > gap[0] + 0.06


def test_a_step_with_diversity_spreads_the_clusters_and_leaves_the_encoder_alone():
    encoder = small_encoder()
    image, camid, target, alpha = small_batch(8)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, -1])
    real = encoder(image)
    centroids = torch.stack([real[labels == label].mean(0) for label in (0, 1)])
    lam = 0.1 / float(cluster_diversity(real, labels, centroids))
    found = {}
    for div_weight in (0.0, 1000.0):
        pair = small_pair()
        before = copies(encoder)
        arguments = {"encode": encoder, "labels": labels, "centroids": centroids, "lam": lam, "div_weight": div_weight}
        optimizers = pair.make_optimizers(lr=1e-3)
        first = translation_step(pair, optimizers, 0, image, camid, target, alpha, n_critic=1, **arguments)
        after = pair.generator_losses(image, camid, target, **arguments)
        assert_unchanged(encoder, before)
        assert all(parameter.grad is None for parameter in encoder.parameters())
        found[div_weight] = first["g_diversity"], after["diversity"], first["g_div"], after["div"]
    was, now, loss_was, loss_now = found[1000.0]
    assert was == found[0.0][0]
    assert now > 1.01 * was
    assert loss_now < loss_was
    assert now > 1.01 * found[0.0][1]  # the pull is the diversity's, not that of the other terms


def test_a_batch_of_outliers_steps_as_without_diversity():
    image, camid, target, alpha = small_batch()
    states = []
    arguments = {"encode": small_encoder(), "labels": torch.full((4,), -1), "centroids": torch.zeros(2, 16)}
    for options in ({}, arguments):
        pair = small_pair()
        translation_step(pair, pair.make_optimizers(), 0, image, camid, target, alpha, n_critic=1, **options)
        states.append(copies(pair))
    assert_close(states[1], states[0], rtol=0, atol=0)


def test_mistakes_around_the_pair_are_refused():
    pair = small_pair()
    image, camid, target, alpha = small_batch()
    with pytest.raises(ValueError, match="target holds camera 3; there are num_cameras=3, counted from 0"):
        pair.generator_losses(image, camid, target + 3 - target.min())
    with pytest.raises(ValueError, match="camid holds camera -1"):
        pair.discriminator_losses(image, camid - 1, target, alpha)
    with pytest.raises(ValueError, match=r"camera must hold one camera per image, \(4,\), got \(2,\)"):
        pair.translate(image, camid[:2])
    with pytest.raises(ValueError, match="image holds no images"):
        pair.discriminator_losses(image[:0], camid[:0], target[:0], alpha[:0])
    with pytest.raises(ValueError, match="encode needs the labels"):
        pair.generator_losses(image, camid, target, encode=small_encoder())
    with pytest.raises(ValueError, match=r"rec_weight=-1\.0"):
        small_pair(rec_weight=-1.0)
    with pytest.raises(ValueError, match="height=18 and width=8 must be multiples of 4"):
        small_pair(18)
    with pytest.raises(ValueError, match="cannot be halved num_layers=4 times"):
        small_pair(num_layers=4)
    with pytest.raises(ValueError, match="n_critic=0"):
        translation_step(pair, pair.make_optimizers(), 0, image, camid, target, alpha, n_critic=0)


# draws and rate


def test_targets_are_the_batchs_cameras_in_an_order_that_the_key_decides():
    camid = torch.randint(6, (64,))
    drawn = [draw_targets(camid, seed, step) for seed, step in itertools.product(range(2), range(2))]
    for target in drawn:
        assert torch.equal(target.sort().values, camid.sort().values)
    assert torch.equal(drawn[3], draw_targets(camid, 1, 1))
    for one, other in itertools.combinations([camid, *drawn], 2):
        assert not torch.equal(one, other)


def test_shares_are_uniform_and_decided_by_the_key():
    alpha = draw_alpha(10_000, 3, 4)
    assert alpha.dtype == torch.float32
    assert torch.equal(alpha, draw_alpha(10_000, 3, 4))
    assert not torch.equal(alpha, draw_alpha(10_000, 3, 5))
    assert_close(torch.histc(alpha, 4, 0, 1), torch.full((4,), 2500.0), rtol=0.05, atol=0)


def test_the_rate_falls_in_steps_to_zero_over_the_last_part():
    rate = [decayed_rate(step, 1e-4, total=200, decay_steps=100, every=10) for step in range(201)]
    assert rate[:110] == [1e-4] * 110
    assert rate[110:120] == pytest.approx([0.9e-4] * 10)
    assert rate[190:200] == pytest.approx([0.1e-4] * 10)
    assert rate[200] == 0
    assert decayed_rate(10**6, 1e-4, total=200, decay_steps=100) == 0
    assert decayed_rate(10**6, 1e-4, total=200, decay_steps=0) == 1e-4
    with pytest.raises(ValueError, match="decay_steps=300"):
        decayed_rate(0, 1e-4, total=200, decay_steps=300)


# two processes


def one_step(rows, group=False):
    """Both networks after a step of each on some rows of the batch, and what was logged."""
    pair = small_pair().double()
    encoder = small_encoder().double()
    batch = [part[rows] for part in small_batch(8, dtype=torch.float64)]
    labels = torch.tensor([0, -1, 1, -1, -1, -1, -1, 0])[rows]  # three of the first process's rows, one of the other's
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in (pair.discriminator, pair.generator)]
    centroids = torch.ones(2, 16, dtype=torch.float64)
    logged = translation_step(
        pair, optimizers, 0, *batch, n_critic=1, encode=encoder, labels=labels, centroids=centroids, div_weight=50.0
    )
    return copies(pair), logged


def _process(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        results.put((rank, *({k: v.numpy() for k, v in part.items()} for part in one_step(slice(rank, None, 2)))))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_as_one_does(tmp_path):
    context = multiprocessing.get_context("spawn")  # a fork after torch.export hangs
    results = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, tmp_path / "store", results), daemon=True) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = {rank: parts for rank, *parts in (results.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    weights, logged = one_step(slice(None))
    for rank in range(2):
        ours = {key: torch.from_numpy(value) for key, value in found[rank][0].items()}
        assert_close(ours, weights, rtol=0, atol=1e-10)
        assert found[rank][1]["g_diversity"] == pytest.approx(float(logged["g_diversity"]), abs=1e-10)
    fresh = copies(small_pair().double())
    assert max(float((weights[key] - fresh[key]).abs().max()) for key in fresh) > 1e-3


def test_alone_gradients_stay_as_they_are():
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    average_gradients(layer.parameters())
    assert layer.weight.grad.tolist() == [[1, 1]]
