"""What a network costs: multiply-adds, parameters, bytes on disk, milliseconds."""

import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lit_methods.functional.modes import evaluating


class Complexity(NamedTuple):
    """What ``measure_complexity`` measured.

    Args:
        macs: multiply-adds of one image, as ``count_macs`` counts them.
        params: every parameter.
        file_bytes: size of the saved state dict.
        latency_ms: median of single forward passes at batch 1.
    """

    macs: int
    params: int
    file_bytes: int
    latency_ms: float


@contextmanager
def call_hooks(
    model: nn.Module, names: Sequence[str], hook: Callable[[str, nn.Module, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """While open, a function runs after each call of some modules.

    Args:
        model: no hook is left behind in it.
        names: of its modules.
        hook: ``hook(name, module, first input, output)``; a tensor that it returns goes on in the output's place.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2))
        >>> with call_hooks(model, ["0"], lambda name, module, x, y: print(name, tuple(x.shape), tuple(y.shape))):
        ...     _ = model(torch.zeros(1, 4))
        0 (1, 4) (1, 2)
    """

    def bind(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
        return lambda module, inputs, output: hook(name, module, next(iter(inputs), None), output)  # type: ignore[arg-type]

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_hook(bind(name)))
        yield


class LayerUse(NamedTuple):
    """How one image uses a layer: ``positions`` where its kernel is applied (1 for a vector), ``outputs`` written."""

    positions: int
    outputs: int


def layer_uses(model: nn.Module, input_size: Sequence[int]) -> dict[str, LayerUse]:
    """Use of every convolution and linear layer, from one forward pass on zeros in eval mode.

    A layer that is called twice counts twice, one that is not called has zeros.

    Args:
        model: its modes and buffers are as before afterwards.
        input_size: (C, H, W) of one image.

    Example:
        >>> layer_uses(nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 10, 10))
        {'0': LayerUse(positions=64, outputs=512)}
    """
    uses = {name: LayerUse(0, 0) for name, part in model.named_modules() if isinstance(part, _ConvNd | nn.Linear)}

    def count(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        if isinstance(module, nn.Linear):
            positions = y.numel() // module.out_features
        else:  # a transposed convolution applies its kernel once per input pixel
            positions = (x if isinstance(module, _ConvTransposeNd) else y)[0, 0].numel()
        uses[name] = LayerUse(uses[name].positions + positions, uses[name].outputs + y.numel())

    with evaluating(model), call_hooks(model, list(uses), count):
        model(blank_images(model, input_size))
    return uses


def count_macs(model: nn.Module, input_size: Sequence[int] = (3, 32, 32), *, bias: bool = False) -> int:
    """Multiply-adds of one image in convolutions and linear layers; nothing else is counted.

    Args:
        model: its modes and buffers are as before afterwards.
        input_size: (C, H, W) of one image.
        bias: add one for every output element of a layer with bias.

    Example:
        >>> count_macs(nn.Conv2d(3, 8, 3), (3, 10, 10))
        13824
    """
    macs = 0
    for name, use in layer_uses(model, input_size).items():
        layer = model.get_submodule(name)
        macs += use.positions * layer.get_parameter("weight").numel()
        if bias and layer.bias is not None:
            macs += use.outputs
    return macs


def measure_complexity(
    model: nn.Module, input_size: Sequence[int] = (3, 32, 32), *, repeats: int = 10, latency_ms: float | None = None
) -> Complexity:
    """Multiply-adds, parameters, size of the saved state dict and milliseconds per image at batch 1.

    Args:
        model: its modes and buffers are as before afterwards.
        input_size: (C, H, W) of one image.
        repeats: timed forward passes, after two to warm up.
        latency_ms: milliseconds that were measured already, beside other networks, say; then nothing is timed.

    Raises:
        ValueError: ``repeats`` is below 1.

    Example:
        >>> measure_complexity(nn.Linear(4, 2), (4,)).params
        10
        >>> measure_complexity(nn.Linear(4, 2), (4,), latency_ms=0.5).latency_ms
        0.5
    """
    if latency_ms is None:
        latency_ms = measure_latency({"model": model}, input_size, repeats=repeats)["model"]
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return Complexity(
        macs=count_macs(model, input_size),
        params=sum(parameter.numel() for parameter in model.parameters()),
        file_bytes=file.getbuffer().nbytes,
        latency_ms=latency_ms,
    )


def measure_latency(
    models: Mapping[str, nn.Module],
    input_size: Sequence[int] = (3, 32, 32),
    *,
    batch_size: int = 1,
    repeats: int = 10,
    warmup: int = 2,
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each model, taken in turns so that a busy machine is fair to all.

    Args:
        models: name -> model; each is timed on its own device, in eval mode without gradients.
        input_size: (C, H, W) of one image.
        batch_size: images per forward pass.
        repeats: timed rounds over the models.
        warmup: rounds before, not timed.

    Raises:
        ValueError: ``repeats`` is below 1.

    Example:
        >>> times = measure_latency({"small": nn.Linear(4, 2), "large": nn.Linear(4, 4)}, (4,), repeats=1)
        >>> list(times)
        ['small', 'large']
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    times: dict[str, list[float]] = {name: [] for name in models}
    images = {name: blank_images(model, input_size, batch_size) for name, model in models.items()}
    for turn in range(warmup + repeats):
        for name, model in models.items():
            with evaluating(model):
                _finish(images[name])
                start = time.perf_counter()
                model(images[name])
                _finish(images[name])
                elapsed = time.perf_counter() - start
            if turn >= warmup:
                times[name].append(1000 * elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def blank_images(model: nn.Module, input_size: Sequence[int], batch_size: int = 1) -> Tensor:
    """Zeros (batch_size, C, H, W) of the dtype and on the device of a model's first floating point parameter.

    Args:
        model: has such a parameter.
        input_size: (C, H, W) of one image.
        batch_size: how many.

    Example:
        >>> blank_images(nn.Linear(4, 2).double(), (4,))
        tensor([[0., 0., 0., 0.]], dtype=torch.float64)
    """
    weight = next(p for p in model.parameters() if p.is_floating_point())
    return torch.zeros(batch_size, *input_size, dtype=weight.dtype, device=weight.device)


def _finish(x: Tensor) -> None:
    """Wait for the accelerator, whose calls return before the work is done."""
    if x.device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(x.device)
