"""Quick layers of BPE's networks: outputs, gradients, names and hooks of the plain ones, whatever the filter."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from lit_methods.backbones.darts_cells import FactorizedReduce
from lit_methods.bpe_mip.cell_network import GenotypeCell
from lit_methods.bpe_mip.cells import CellSite
from lit_methods.bpe_mip.depthwise import depthwise_conv, every
from lit_methods.bpe_mip.model import DartsCellNetwork
from lit_methods.bpe_mip.quick_layers import QuickConv2d, QuickFactorizedReduce, SharedReLU, quicken
from lit_methods.bpe_mip.search_space import PRIMITIVES, Genotype
from lit_methods.bpe_mip.trial import trial_loss

NAMES = PRIMITIVES[:-1]
EVERY = Genotype(
    [[(NAMES[(2 * node + i) % 7], i) for i in range(2)] for node in range(4)],
    [[(NAMES[(2 * node + i + 3) % 7], i) for i in range(2)] for node in range(4)],
)  # all seven operations in both cells


def plain(network):
    """A copy with torch's own layers."""
    network = copy.deepcopy(network)
    kinds = {QuickConv2d: nn.Conv2d, SharedReLU: nn.ReLU, QuickFactorizedReduce: FactorizedReduce}
    for part in network.modules():
        part.__class__ = kinds.get(type(part), type(part))
    return network


def same(ours, theirs):
    assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(7, 9), (4, 4), (2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
def test_convolutions_within_channels_and_their_gradients_are_torchs(kernel, dilation, stride, size):
    padding = dilation * (kernel // 2)
    for layout in (torch.channels_last, torch.contiguous_format):
        x = torch.randn(3, 4, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        weight = torch.randn(4, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
        expected = F.conv2d(x, weight, None, stride, padding, dilation, 4)
        found = depthwise_conv(x, weight, stride, padding, dilation)
        same(found, expected)
        grad = torch.randn_like(expected)
        for ours, theirs in zip(
            torch.autograd.grad(found, [x, weight], grad), torch.autograd.grad(expected, [x, weight], grad), strict=True
        ):
            same(ours, theirs)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_either_gradient_can_be_asked_for_alone(stride, dilation, wanted):
    x, weight = torch.randn(2, 3, 6, 6).double(), torch.randn(3, 1, 3, 3).double()
    leaves = [leaf.requires_grad_() for leaf, wish in zip((x, weight), wanted, strict=True) if wish]
    found = depthwise_conv(x, weight, stride, dilation, dilation)
    expected = F.conv2d(x, weight, None, stride, dilation, dilation, 3)
    same(torch.autograd.grad(found.sin().sum(), leaves), torch.autograd.grad(expected.sin().sum(), leaves))


def test_second_derivatives_are_right():
    x, weight = torch.randn(1, 2, 4, 4).double(), torch.randn(2, 1, 3, 3).double()
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda *leaves: depthwise_conv(*leaves, 1, 2, 2), inputs)


@pytest.mark.parametrize("first", [0, 1])
def test_every_other_pixel_takes_the_gradient_of_slices(first):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    expected = x[:, :, first::2, first::2]
    assert torch.equal(every(x, 2, first), expected)
    grad = torch.randn_like(expected)
    assert torch.equal(*(torch.autograd.grad(kept, x, grad)[0] for kept in (every(x, 2, first), expected)))


@pytest.mark.parametrize("size", [8, 12, 16])  # maps down to 2x2, 3x3, 4x4
def test_networks_train_as_with_torchs_layers(size):
    ours = DartsCellNetwork(EVERY, 4, 4, image_size=size, auxiliary=True).double().to(memory_format=torch.channels_last)
    theirs = plain(ours)
    kinds = {type(part) for part in ours.modules()}
    assert {QuickConv2d, SharedReLU, QuickFactorizedReduce} <= kinds
    assert not {QuickConv2d, SharedReLU, QuickFactorizedReduce} & {type(part) for part in theirs.modules()}
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x, label = torch.randn(5, 3, size, size, dtype=torch.float64), torch.randint(10, (5,))
    results = []
    for network in (ours, theirs):
        network.drop_path_prob = 0.3
        torch.manual_seed(0)
        image = x.clone().requires_grad_()
        outputs = network(image)
        trial_loss(*outputs, label).backward()
        results.append([*outputs, image.grad, *(p.grad for p in network.parameters()), *network.buffers()])
    for a, b in zip(*results, strict=True):
        same(a, b)
    same(ours.eval()(x)[0], theirs.eval()(x)[0])


def test_drop_path_applies_to_the_second_edge_of_a_node_too():
    nodes = ((("max_pool_3x3", 0), ("avg_pool_3x3", 1)), (), (), ())
    cell = GenotypeCell(nodes, CellSite((4, 4), 4, reduction=False, reduction_prev=False))
    s = torch.randn(3, 4, 8, 8)
    masks = [torch.tensor([0.0, 1, 2]).view(3, 1, 1, 1), torch.tensor([1.0, 0, 3]).view(3, 1, 1, 1)]
    states = [cell.preprocess0(s), cell.preprocess1(s)]
    expected = sum(op(state) * mask for op, state, mask in zip(cell.ops, states, masks, strict=True))
    assert_close(cell(s, s, iter(masks))[:, :4], expected)


def test_gradients_keep_the_layout_of_the_maps():
    """A map that falls out of channels last makes everything before it slow."""
    network = DartsCellNetwork(EVERY, 4, 4, image_size=16, auxiliary=True).to(memory_format=torch.channels_last)
    seen = []

    def note(module, args, output):
        output.register_hook(lambda grad: seen.append(grad.stride(1)))

    for part in network.cells.modules():
        if isinstance(part, nn.BatchNorm2d | nn.ReLU):
            part.register_forward_hook(note)
    images = torch.randn(5, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    trial_loss(*network(images), torch.zeros(5, dtype=torch.int64)).backward()
    assert len(seen) > 50
    assert set(seen) == {1}


def test_a_relu_is_computed_once_for_all_that_read_a_tensor():
    network = quicken(nn.ModuleList([nn.ReLU(), nn.ReLU()]))
    x = torch.randn(3, requires_grad=True).add(0)
    first, second = (relu(x) for relu in network)
    assert first is second
    x.add_(1)
    assert_close(network[0](x), x.relu())
    assert network.eval()[0](x) is not network[0](x)
    with torch.no_grad():
        assert not network.train()[0](x).requires_grad


def test_layers_of_other_kinds_stay():
    parts = (
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, (3, 5), groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4, bias=False),
        nn.ReLU(inplace=True),
    )
    for part in parts:
        assert type(quicken(part)) in (nn.Conv2d, nn.ReLU)


def test_half_precision_takes_torchs_way():
    conv = quicken(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False))
    x = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
