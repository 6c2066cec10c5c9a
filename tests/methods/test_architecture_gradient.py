"""DARTS' gradients: the official ones, a second derivative taken another way, and nothing is left behind."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lit_methods.bpe_mip.architecture_gradient import architecture_gradient
from lit_methods.bpe_mip.model import DartsSupernet
from lit_methods.bpe_mip.search_space import parse_alpha
from tests.methods.test_bpe_model import by_rule, decode


class Smooth(nn.Module):
    """A small network without kinks, so that autograd can take the second derivative."""

    def __init__(self):
        super().__init__()
        self.lower, self.norm, self.upper = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.mix, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return self.upper((self.norm(self.lower(x)) * self.mix).tanh()) + self.shift

    def arch_parameters(self):
        return [self.mix, self.shift]

    def weight_parameters(self):
        return [*self.lower.parameters(), *self.norm.parameters(), *self.upper.parameters()]


def trained_smooth():
    """Float64, two groups, and buffers of the optimizer and running statistics that are not the first ones."""
    net = Smooth().double()
    groups = [
        {"params": [*net.lower.parameters()], "weight_decay": 0.1},
        {"params": [*net.norm.parameters(), *net.upper.parameters()], "momentum": 0.7},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.3, momentum=0.9, weight_decay=0.02)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(8, 5).double()), torch.randint(3, (8,))).backward()
        optimizer.step()
    return net, optimizer, batch(), batch()


def batch():
    return torch.randn(8, 5).double(), torch.randint(3, (8,))


def exact(net, optimizer, train, val, xi):
    """The gradient by the trial step, itself differentiated."""
    names = {id(p): name for name, p in net.named_parameters()}
    weights = net.weight_parameters()
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    loss = F.cross_entropy(torch.func.functional_call(net, buffers, (train[0],)), train[1])
    grads = dict(zip(map(id, weights), torch.autograd.grad(loss, weights, create_graph=True), strict=True))
    moved = {}
    for group in optimizer.param_groups:
        for w in group["params"]:
            buffer = optimizer.state.get(w, {}).get("momentum_buffer", torch.zeros_like(w))
            step = group["momentum"] * buffer + grads[id(w)] + group["weight_decay"] * w
            moved[names[id(w)]] = w - xi * step
    loss = F.cross_entropy(torch.func.functional_call(net, buffers | moved, (val[0],)), val[1])
    return torch.autograd.grad(loss, net.arch_parameters())


def test_unrolled_gradient_is_the_derivative_through_the_step():
    net, optimizer, train, val = trained_smooth()
    found = architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3)
    expected = exact(net, optimizer, train, val, 0.3)
    at_w = architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3, unrolled=False)
    for ours, theirs, first in zip(found, expected, at_w, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(ours, first, rtol=0.05, atol=0)


def test_momentum_that_is_not_there_yet_counts_as_zero():
    net, _, train, val = trained_smooth()
    fresh = torch.optim.SGD(net.weight_parameters(), lr=0.3, momentum=0.9, weight_decay=0.02)
    found = architecture_gradient(net, train, val, optimizer=fresh, xi=0.3)
    assert_close(found, [*exact(net, fresh, train, val, 0.3)], rtol=1e-4, atol=1e-6)
    assert not fresh.state


def test_first_order_gradient_is_autograds_and_needs_no_training_batch():
    net, optimizer, _, val = trained_smooth()
    found = architecture_gradient(net, (None, None), val, optimizer=optimizer, xi=0.3, unrolled=False)
    twin = copy.deepcopy(net)
    expected = torch.autograd.grad(F.cross_entropy(twin(val[0]), val[1]), twin.arch_parameters())
    assert_close(found, [*expected], rtol=0, atol=0)


def snapshot(net, optimizer):
    return copy.deepcopy(
        {
            "state": net.state_dict(),
            "grads": [p.grad for p in net.parameters()],
            "flags": [(p.requires_grad, id(p)) for p in net.parameters()],
            "storage": [t.data_ptr() for t in (*net.parameters(), *net.buffers())],
            "modes": [part.training for part in net.modules()],
            "optimizer": optimizer.state_dict(),
        }
    )


@pytest.mark.parametrize("mode", [True, False])
def test_network_and_optimizer_are_as_before(mode):
    net, optimizer, train, val = trained_smooth()
    net.train(mode)
    before = snapshot(net, optimizer)
    for unrolled in (True, False):
        architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3, unrolled=unrolled)
        assert_close(snapshot(net, optimizer), before, rtol=0, atol=0)


@pytest.mark.parametrize("fail_at", range(1, 5))
def test_network_and_optimizer_are_as_before_when_a_pass_fails(fail_at):
    net, optimizer, train, val = trained_smooth()
    before = snapshot(net, optimizer)
    calls = []

    def fail(module, args):
        calls.append(args)
        if len(calls) == fail_at:
            raise RuntimeError("out of memory, say")

    with net.upper.register_forward_pre_hook(fail), pytest.raises(RuntimeError, match="out of memory, say"):
        architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3)
    assert len(calls) == fail_at
    assert_close(snapshot(net, optimizer), before, rtol=0, atol=0)


def test_without_a_gradient_of_the_weights_there_is_no_second_term():
    net, optimizer, train, (images, labels) = trained_smooth()

    def blocked(lists):
        return [torch.zeros_like(g) if len(lists) > 2 and i > 1 else g for i, g in enumerate(lists)]

    found = architecture_gradient(net, train, (images, labels), optimizer=optimizer, xi=0.3, reduce=blocked)
    assert all(g.isfinite().all() for g in found)
    seen = []
    architecture_gradient(
        net, train, (images, labels), optimizer=optimizer, xi=0.3, reduce=lambda g: seen.append(g) or blocked(g)
    )
    assert_close(found, seen[1][:2], rtol=0, atol=0)


def test_every_list_of_gradients_goes_through_reduce():
    net, optimizer, train, val = trained_smooth()
    lengths = []
    reduced = architecture_gradient(
        net, train, val, optimizer=optimizer, xi=0.3, reduce=lambda grads: lengths.append(len(grads)) or grads
    )
    assert lengths == [6, 8, 2, 2]
    assert_close(reduced, architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3), rtol=0, atol=0)
    lengths.clear()
    halved = architecture_gradient(
        net, train, val, optimizer=optimizer, xi=0.3, unrolled=False, reduce=lambda grads: [g / 2 for g in grads]
    )
    whole = architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3, unrolled=False)
    assert_close([2 * g for g in halved], whole)


def test_two_halves_of_a_batch_averaged_give_the_gradient_of_the_whole():
    """In eval mode, where batch norm does not mix the samples; two threads stand for two processes."""
    from threading import Barrier, Thread

    net, optimizer, train, val = trained_smooth()
    net.eval()
    whole = architecture_gradient(net, train, val, optimizer=optimizer, xi=0.3)
    barrier, shelf, found = Barrier(2, timeout=30), {}, {}

    def process(rank, net, optimizer):
        def average(grads):
            shelf[rank] = grads
            barrier.wait()
            mean = [(a + b) / 2 for a, b in zip(shelf[0], shelf[1], strict=True)]
            barrier.wait()
            return mean

        part = slice(4 * rank, 4 * rank + 4)
        half = [(images[part], labels[part]) for images, labels in (train, val)]
        found[rank] = architecture_gradient(net, *half, optimizer=optimizer, xi=0.3, reduce=average)

    threads = [Thread(target=process, args=(r, *copy.deepcopy((net, optimizer)))) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(2):
        assert_close(found[rank], whole, rtol=1e-8, atol=1e-10)


def test_errors_name_the_argument():
    net, optimizer, train, val = trained_smooth()
    with pytest.raises(ValueError, match=r"xi=-0\.1 must be at least 0"):
        architecture_gradient(net, train, val, optimizer=optimizer, xi=-0.1)
    other = torch.optim.SGD(net.upper.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer lacks some of net\.weight_parameters"):
        architecture_gradient(net, train, val, optimizer=other, xi=0.1)
    architecture_gradient(net, train, val, optimizer=other, xi=0.1, unrolled=False)


def rows(grads):
    return torch.cat([g.detach() for g in grads])


def official(vectors):
    """The vectors' supernet, its optimizer, its two batches, its vectors."""
    z = {key: torch.from_numpy(a) for key, a in np.load(vectors / "bpe_mip" / "darts_search.npz").items()}
    net = by_rule(DartsSupernet(int(z["channels"]), int(z["layers"])))
    with torch.no_grad():
        for alpha, part in zip(net.arch_parameters(), z["alpha"].split([2, 3, 4, 5] * 2), strict=True):
            alpha.copy_(part)
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=0.03, momentum=0.9, weight_decay=3e-4)
    return net, optimizer, (z["x_train"], z["y_train"]), (z["x_val"], z["y_val"]), z


def test_supernet_and_its_gradients_are_the_official_ones(vectors):
    net, optimizer, train, val, z = official(vectors)
    assert net.genotype() == parse_alpha(z["alpha"]) == decode(z["genotype"].numpy())
    first = architecture_gradient(net, train, val, optimizer=optimizer, xi=0.03, unrolled=False)
    assert_close(rows(first), z["alpha_grad_first_order_initial"], rtol=0, atol=1e-6)
    logits = []
    for _ in range(2):
        logits.append(net(train[0]))
        optimizer.zero_grad()
        F.cross_entropy(logits[-1], train[1]).backward()
        nn.utils.clip_grad_norm_(net.weight_parameters(), 5.0)
        optimizer.step()
    assert_close(logits[0], z["logits_initial"], rtol=0, atol=1e-6)
    logits.append(net(train[0]))
    assert_close(logits[2], z["logits_after_two_steps"], rtol=0, atol=1e-6)
    assert_close(F.cross_entropy(logits[2], train[1]), z["train_loss"], rtol=0, atol=1e-6)
    assert_close(F.cross_entropy(net(val[0]), val[1]), z["val_loss"], rtol=0, atol=1e-6)

    xi = float(z["xi"])
    first = architecture_gradient(net, train, val, optimizer=optimizer, xi=xi, unrolled=False)
    assert_close(rows(first), z["alpha_grad_first_order"], rtol=0, atol=1e-6)
    lists = []
    found = rows(
        architecture_gradient(net, train, val, optimizer=optimizer, xi=xi, reduce=lambda g: lists.append(g) or g)
    )
    expected = z["alpha_grad_unrolled_correct"]
    assert (found - expected).norm() <= 1e-4 * expected.norm()

    g, direction = lists[1][:8], lists[1][8:]  # the released code multiplies by eps in place of dividing
    eps = 0.01 / torch.cat([d.flatten() for d in direction]).norm()
    released = rows(g) - xi * (rows(lists[2]) - rows(lists[3])) / 2 * eps
    assert_close(released, z["alpha_grad_unrolled_official"], rtol=0, atol=1e-6)
    assert (found - released).norm() > 1e-3 * expected.norm()


def without_kinks(part):
    """With ReLUs that switch between w + eps d and w - eps d, the difference of gradients is no derivative."""
    for name, child in part.named_children():
        if isinstance(child, nn.ReLU):
            setattr(part, name, nn.Softplus())
        elif isinstance(child, nn.MaxPool2d):
            setattr(part, name, nn.AvgPool2d(3, child.stride, 1))
        else:
            without_kinks(child)
    return part


def smooth_supernet(xi):
    """In float64 and behind a first step, with its optimizer and two batches."""
    net = without_kinks(DartsSupernet(2, 3)).double()
    optimizer = torch.optim.SGD(net.weight_parameters(), lr=xi, momentum=0.9, weight_decay=3e-4)
    train, val = ((torch.randn(8, 3, 8, 8).double(), torch.randint(10, (8,))) for _ in range(2))
    F.cross_entropy(net(train[0]), train[1]).backward()
    nn.utils.clip_grad_norm_(net.weight_parameters(), 5.0)
    optimizer.step()
    return net, optimizer, train, val


def numerical(net, optimizer, train, val, direction, h=1e-4):
    """Central difference, along a direction, of the loss behind a step of the optimizer itself."""
    losses = []
    for sign in (1, -1):
        twin, sgd = copy.deepcopy((net, optimizer))
        with torch.no_grad():
            for alpha, d in zip(twin.arch_parameters(), direction, strict=True):
                alpha.add_(d, alpha=sign * h)
        sgd.zero_grad()
        F.cross_entropy(twin(train[0]), train[1]).backward()
        sgd.step()
        with torch.no_grad():
            losses.append(F.cross_entropy(twin(val[0]), val[1]).item())
    return (losses[0] - losses[1]) / (2 * h)


def along(grads, direction):
    return sum((g * d).sum().item() for g, d in zip(grads, direction, strict=True))


@pytest.mark.parametrize(
    "place", [None, pytest.param(17, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)]
)
def test_unrolled_gradient_of_the_supernet_agrees_with_a_numerical_derivative(place):
    """Along a random direction, which all 224 architecture weights take part in, or a single one."""
    net, optimizer, train, val = everything = smooth_supernet(0.03)
    lists = []
    found = architecture_gradient(net, train, val, optimizer=optimizer, xi=0.03, reduce=lambda g: lists.append(g) or g)
    flat = torch.randn(224) if place is None else F.one_hot(torch.tensor(place), 224)
    direction = flat.double().view(28, 8).split([2, 3, 4, 5] * 2)
    expected = numerical(*everything, direction)
    error = abs(along(found, direction) - expected)
    assert error <= 2e-3 * abs(expected)
    assert abs(along(lists[1][:8], direction) - expected) > 10 * error  # the first term alone


def test_a_step_of_darts_changes_every_architecture_weight_and_lowers_the_loss():
    net = DartsSupernet(2, 3)
    weights = torch.optim.SGD(net.weight_parameters(), lr=0.03, momentum=0.9, weight_decay=3e-4)
    optimizer = torch.optim.Adam(net.arch_parameters(), lr=0.05, betas=(0.5, 0.999))
    train, val = ((torch.randn(8, 3, 8, 8), torch.randint(10, (8,))) for _ in range(2))
    before = rows(net.arch_parameters())
    losses = []
    for _ in range(2):
        grads = architecture_gradient(net, train, val, optimizer=weights, xi=0.03, unrolled=False)
        for alpha, grad in zip(net.arch_parameters(), grads, strict=True):
            alpha.grad = grad
        optimizer.step()
        losses.append(F.cross_entropy(net(val[0]), val[1]).item())
    assert rows(net.arch_parameters()).ne(before).all()
    assert losses[-1] < losses[0]
