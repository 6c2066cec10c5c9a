"""A trial on random weights: is a network without some channels the full one that does not read them?"""

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from lit_methods.backbones.groups import ChannelGroup, select_channels, traced_plan
from lit_methods.backbones.kept import TracedPlan
from lit_methods.backbones.slicing import slice_network

_TOLERANCE = 1e-8  # of the largest output, in float64: rounding stays far below, a channel at a wrong place far above


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float64 copy on the CPU in which no channel is like another and all parameters take gradients.

    Args:
        model: not changed.
        generator: draws the weights and running statistics.

    Example:
        >>> randomised(nn.Linear(2, 1).requires_grad_(False), torch.Generator().manual_seed(0)).weight.requires_grad
        True
    """
    trial = copy.deepcopy(model).cpu().double().requires_grad_(True)
    statistics = [(key, tensor) for key, tensor in trial.named_buffers() if "running_" in key]
    with torch.no_grad():
        for key, tensor in [*trial.named_parameters(), *statistics]:
            if tensor.ndim > 1:
                tensor.normal_(0, math.sqrt(2 / tensor[0].numel()), generator=generator)
            else:
                centre = {"weight": 1.0, "running_var": 1.0, "bias": 0.5}.get(key.rpartition(".")[2], 0.0)
                tensor.uniform_(centre - 0.5, centre + 0.5, generator=generator)
    return trial


def sound_groups(trial: nn.Module, groups: list[ChannelGroup], images: Tensor) -> list[ChannelGroup]:
    """Those of the groups that can be narrowed, found by halving.

    Args:
        trial: a ``randomised`` network, in eval mode.
        groups: to try out.
        images: (2, C, H, W) float64.

    Returns:
        What is left, in the same order; possibly none.
    """
    if not groups or _can_be_narrowed(trial, groups, images):
        return groups
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return sound_groups(trial, groups[:middle], images) + sound_groups(trial, groups[middle:], images)


@torch.no_grad()
def _can_be_narrowed(trial: nn.Module, groups: Sequence[ChannelGroup], images: Tensor) -> bool:
    """Whether these groups may lose a random half of their channels: the same outputs, and a forward in train mode."""
    generator = torch.Generator().manual_seed(1)
    scores = {group.root: torch.rand(group.channels, generator=generator) for group in groups}
    plan = traced_plan(trial, groups, select_channels(scores, groups, [group.channels // 2 for group in groups]))
    small, learner = slice_network(trial, plan), slice_network(trial, plan).train()
    try:
        learner(images)  # heads that only training uses may read the channels as well
        actual = small(images[:1])
    except Exception:  # shapes that no longer fit raise anything
        return False
    expected = _without_reading(trial, plan, images[:1])
    scale = expected.abs().max().item()
    return expected.shape == actual.shape and torch.allclose(actual, expected, rtol=0, atol=_TOLERANCE * scale)


def _without_reading(trial: nn.Module, plan: TracedPlan, images: Tensor) -> Tensor:
    """Outputs of the full network whose layers see zeros at the inputs that the plan removes."""

    def hide(layer: nn.Module, inputs: tuple[Tensor, ...], kept: Tensor) -> tuple[Tensor, ...]:
        dim = -1 if isinstance(layer, nn.Linear) else 1
        seen = torch.zeros_like(inputs[0]).index_copy(dim, kept, inputs[0].index_select(dim, kept))
        return seen, *inputs[1:]

    with ExitStack() as hooks:
        for name, (_, inputs) in plan.layers.items():
            if inputs is not None:
                hook = partial(hide, kept=torch.tensor(inputs))
                hooks.enter_context(trial.get_submodule(name).register_forward_pre_hook(hook))
        return trial(images)
