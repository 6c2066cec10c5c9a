"""The calls of a network's modules in one forward pass, and which of them takes what another one gave."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from lit_methods.functional.complexity import blank_images
from lit_methods.functional.modes import evaluating


class Call(NamedTuple):
    """One call of a module without children: tensors are held, so that identity tells who follows whom.

    Args:
        name: of the module.
        source: its first input, ``None`` where that is no tensor.
        source_version: counts changes in place, of which a sum of residuals is one.
        result: its output.
        result_version: as above.
    """

    name: str
    source: Tensor | None
    source_version: int
    result: Tensor
    result_version: int

    def follower(self, calls: Sequence[Call]) -> Call | None:
        """The first of these calls that takes this one's result as it is; ``None`` without any."""
        return next((call for call in calls if call is not self and call._takes(self)), None)

    def _takes(self, other: Call) -> bool:
        return self.source is other.result and self.source_version == other.result_version


def forward_calls(model: nn.Module, images: Tensor) -> list[Call]:
    """Calls of one forward pass in eval mode without gradients, in order; those that give no tensor are left out.

    Args:
        model: its modes and buffers are as before afterwards.
        images: a batch of what it takes; no tensor of inference mode, which counts no changes in place.

    Raises:
        ValueError: the model does not return one tensor.

    Example:
        >>> from torch import zeros
        >>> conv, relu = forward_calls(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), zeros(1, 3, 8, 8))
        >>> conv.follower([conv, relu]).name
        '1'
    """
    calls: list[Call] = []
    before: list[tuple[Tensor | None, int]] = []

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        source = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        before.append((source, -1 if source is None else source._version))

    def leave(name: str, output: Any) -> None:
        source, version = before.pop()
        if isinstance(output, Tensor):
            calls.append(Call(name, source, version, output, output._version))

    with ExitStack() as hooks, evaluating(model):
        for name, part in model.named_modules():
            if not any(True for _ in part.children()):
                hooks.enter_context(part.register_forward_pre_hook(enter))
                hooks.enter_context(part.register_forward_hook(lambda _, __, output, name=name: leave(name, output)))
        output = model(images)
    if not isinstance(output, Tensor):
        raise ValueError(f"it returns a {type(output).__name__} instead of one tensor")
    return calls


def blank_calls(model: nn.Module, input_size: Sequence[int]) -> list[Call]:
    """``forward_calls`` for one image of zeros.

    Args:
        model: its modes and buffers are as before afterwards.
        input_size: (C, H, W) of the image.

    Raises:
        ValueError: the model does not return one tensor.

    Example:
        >>> [tuple(call.result.shape) for call in blank_calls(nn.Sequential(nn.Conv2d(3, 4, 1)), (3, 8, 8))]
        [(1, 4, 8, 8)]
    """
    return forward_calls(model, blank_images(model, input_size))
