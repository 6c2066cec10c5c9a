"""GatedModel: a frozen network with one gate per channel at some of its modules, for many classes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from lit_methods.backbones import BACKBONES, find_backbone
from lit_methods.backbones.darts import darts_imagenet as darts_imagenet
from lit_methods.functional.complexity import blank_images, call_hooks
from lit_methods.functional.modes import evaluating
from lit_methods.functional.suggestions import first_line, nearest
from lit_methods.nad.functional import channel_gate, open_channels

GATE_POINTS: dict[str, list[str]] = {arch: list(entry.gates()) for arch, entry in BACKBONES.items() if entry.gates}
"""Where the gates sit, by name of the network; vgg16, resnet50, densenet121 and darts as in the official code."""

Mode = Literal["off", "soft", "hard"]


def gate_points_of(arch: str) -> list[str]:
    """Where the gates of a network from ``BACKBONES`` sit.

    Args:
        arch: its key; without a list of gate points, they are where its prunable convolutions are scored.

    Raises:
        ValueError: there is no such key, or neither list.

    Example:
        >>> gate_points_of("resnet20")[:3]
        ['relu', 'layer1.0', 'layer1.1']
    """
    entry = find_backbone(arch)
    if entry.gates is not None:
        return list(entry.gates())
    if entry.prune_points is not None:
        return list(dict.fromkeys(point.module for point in entry.prune_points()))
    raise ValueError(
        f"gate_points: missing; name the modules of {arch} behind which the gates sit ({', '.join(GATE_POINTS)} have a "
        "list of their own)"
    )


def block_points(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> list[str]:
    """The blocks of any network, behind which gates can sit: modules that stand in a row and give maps.

    A list or sequence of modules is looked into, down to the first ones that are neither; anything that is called more
    or less than once, or gives no maps (N, C, H, W), is left out.

    Args:
        model: the network; not changed.
        input_size: (C, H, W) of an image.

    Raises:
        ValueError: it has no such modules.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(144, 2))
        >>> block_points(net, (3, 8, 8))
        ['0.0', '0.1']
    """
    rows, blocks = [("", model)], dict[str, nn.Module]()
    while rows:
        prefix, row = rows.pop(0)
        inner = [(f"{prefix}{name}", child) for name, child in row.named_children()]
        looked_into = [pair for pair in inner if isinstance(pair[1], nn.Sequential | nn.ModuleList) or len(inner) == 1]
        blocks |= dict(pair for pair in inner if pair not in looked_into)
        rows += [(f"{name}.", child) for name, child in looked_into]
    calls: dict[str, list[bool]] = {name: [] for name in blocks}

    def look(name: str, _: nn.Module, __: Tensor, output: Tensor) -> Tensor:
        calls[name].append(isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1)
        return output

    with evaluating(model), call_hooks(model, list(blocks), look):
        model(blank_images(model, input_size))
    order = [name for name, seen in calls.items() if seen == [True]]
    if not order:
        raise ValueError(f"gate_points: missing; no blocks are found in this {type(model).__name__}: name its modules")
    return order


class GatedModel(nn.Module):
    """A network whose channels are multiplied by gates behind some of its modules, one set of gates per task.

    The network itself is not changed: hooks are there while a forward pass runs, and no longer. It has to be in eval
    mode where that makes a difference. Its weights keep their ``requires_grad``; freeze them, as gates alone learn.

    Args:
        model: a classifier, (N, C, H, W) to (N, classes); shared, not copied.
        gate_points: names of modules of it, in any order, each called once per pass; they give (N, C, H, W) or (N, C).
        num_tasks: rows of gates.
        input_size: (C, H, W) of an image, for one pass that finds the numbers of channels.
        threshold: of the hard gates, in (0, 1).

    Attributes:
        gate_logits: L parameters (num_tasks, C_l), drawn from N(0, 1), in the type of the network (float32 for half
            precision).
        num_classes: outputs of the network.

    Raises:
        ValueError: unknown, repeated or no gate points; one that is called more or less than once, or gives no maps; a
            model that has hooks already, or gives no (N, classes). From ``forward``: batch norm or dropout in training
            mode; a task that does not exist.

    Source:
        official code, which rewrites each network. What is recorded is the tensor that goes on: where the network
        rectifies it in place (DenseNet's last one), it is recorded rectified, as there.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> gated = GatedModel(net, ["1"], num_tasks=2, input_size=(3, 8, 8))
        >>> logits, (maps,) = gated(torch.rand(5, 3, 8, 8), task=torch.tensor([0, 1, 1, 0, 0]), return_activations=True)
        >>> logits.shape, maps.shape
        (torch.Size([5, 2]), torch.Size([5, 4, 6, 6]))
    """

    def __init__(
        self,
        model: nn.Module,
        gate_points: Sequence[str],
        num_tasks: int = 1,
        *,
        input_size: Sequence[int] = (3, 224, 224),
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"num_tasks={num_tasks} must be a whole number, at least 1")
        if isinstance(input_size, int):
            raise ValueError(f"input_size={input_size} must be the shape of an input, (C, H, W)")
        open_channels(torch.zeros(1), threshold)  # refuses what is out of range
        self.gate_points = _checked_points(model, gate_points)
        self.model, self.threshold = model, threshold
        self._copied: set[str] = set()  # points whose output the network goes on to change in place
        shapes, self.num_classes = self._look(input_size)
        first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        kind = torch.promote_types(first.dtype, torch.float32)
        self.gate_logits = nn.ParameterList(
            nn.Parameter(torch.randn(num_tasks, shapes[name], dtype=kind).to(first.device)) for name in gate_points
        )

    @property
    def num_tasks(self) -> int:
        """Rows of gates."""
        return len(self.gate_logits[0])

    def open_gates(self) -> list[Tensor]:
        """Which channels are open, one (num_tasks, C) bool per gate point."""
        return [open_channels(m.detach(), self.threshold) for m in self.gate_logits]

    def masks(self, task: int) -> dict[str, Tensor]:
        """Which channels are open in a task, (C,) bool by gate point.

        Args:
            task: its row.
        """
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"task={task} must be between 0 and {self.num_tasks - 1}")
        return {name: m[task] for name, m in zip(self.gate_points, self.open_gates(), strict=True)}

    def forward(
        self, x: Tensor, task: int | Tensor = 0, mode: Mode = "soft", return_activations: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits of the gated network.

        Args:
            x: (N, C, H, W).
            task: a row of the gates, or (N,) int64, one for each image.
            mode: ``"soft"`` (sigmoids), ``"hard"`` (0 and 1) or ``"off"``: all gates 1, exactly the network itself.
            return_activations: also give what went on behind each gate.

        Returns:
            (N, classes), or that and L tensors (N, C_l, H, W) or (N, C_l).
        """
        gate = self._gates(x, task, mode)
        self._refuse_training()
        seen: dict[str, Tensor] = {}

        def pass_on(name: str, _: nn.Module, __: Tensor, output: Tensor) -> Tensor:
            output = gate(name, output)
            if any(output is other for other in seen.values()):  # an identity hands on what stands behind another gate
                output = output.clone()
            seen[name] = output
            return output.clone() if name in self._copied else output

        with call_hooks(self.model, self.gate_points, pass_on):
            logits = self.model(x)
        return (logits, [seen[name] for name in self.gate_points]) if return_activations else logits

    def _gates(self, x: Tensor, task: int | Tensor, mode: Mode) -> Callable[[str, Tensor], Tensor]:
        if mode not in ("off", "soft", "hard"):
            raise ValueError(f"mode={mode!r} must be 'off', 'soft' or 'hard'")
        if mode == "off":
            return lambda name, output: output
        rows = torch.as_tensor(task)
        if rows.shape not in ((), (len(x),)) or rows.dtype not in (torch.int64, torch.int32):
            found = f"{rows.dtype} {tuple(rows.shape)}"
            raise ValueError(f"task must be an int or ({len(x)},) int64, one per image, got {found}")
        here = rows.device.type == "cpu"  # elsewhere the question would wait for the device
        if here and rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_tasks:
            raise ValueError(f"task must be between 0 and {self.num_tasks - 1}, got {rows.min()} to {rows.max()}")
        logits = dict(zip(self.gate_points, self.gate_logits, strict=True))
        rows = rows.to(self.gate_logits[0].device)
        return lambda name, output: channel_gate(output, logits[name][rows], mode == "hard", self.threshold)

    def _refuse_training(self) -> None:
        for name, part in self.model.named_modules():
            if part.training and isinstance(part, _NormBase | _DropoutNd | StochasticDepth):
                raise ValueError(
                    f"model is in training mode, in which {name!r}, a {type(part).__name__}, gives other outputs and "
                    "may change the frozen network: call model.eval()"
                )

    def _look(self, input_size: Sequence[int]) -> tuple[dict[str, int], int]:
        """Channels at each point and number of classes; notes whose output is changed in place afterwards."""
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))
        images = torch.rand(1, *input_size, generator=torch.Generator().manual_seed(0)).to(like)  # zeros hide changes
        given: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.gate_points}

        def look(name: str, _: nn.Module, __: Tensor, output: Tensor) -> Tensor:
            if not isinstance(output, Tensor) or output.ndim not in (2, 4):
                raise ValueError(f"gate_points: {name!r} gives no maps (N, C, H, W) or vectors (N, C)")
            output = output + 0  # of its own: in a network without gates it may be an earlier tensor
            given[name].append((output, output.clone()))
            return output

        with evaluating(self.model), call_hooks(self.model, self.gate_points, look):
            try:
                logits = self.model(images)
            except RuntimeError as ex:
                raise ValueError(f"model does not run at input_size={tuple(input_size)}: {first_line(ex)}") from ex
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError(f"model must give logits (N, classes) for images {tuple(images.shape)}")
        for name, calls in given.items():
            if len(calls) != 1:
                raise ValueError(
                    f"gate_points: {name!r} is called {len(calls)} times in a pass; give a module called once"
                )
            after, before = calls[0]
            if not torch.equal(after, before) and not torch.equal(after, before.relu()):
                self._copied.add(name)
        return {name: calls[0][0].shape[1] for name, calls in given.items()}, logits.shape[1]


def _checked_points(model: nn.Module, gate_points: Sequence[str]) -> list[str]:
    names = [] if isinstance(gate_points, str) else list(gate_points)
    if not names:
        raise ValueError(f"gate_points={gate_points!r} must be a list of module names, such as GATE_POINTS['resnet50']")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules or not name:
            close = nearest(name, [known for known in modules if known])
            raise ValueError(f"gate_points: {name!r} is no module of this {type(model).__name__}{close}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"gate_points names {twice[0]!r} twice")
    refuse_hooks(model)
    return names


def refuse_hooks(model: nn.Module) -> None:
    """Stop where others have hooks in a network, which may change what is measured.

    Args:
        model: the network.

    Raises:
        ValueError: names the module.

    Example:
        >>> refuse_hooks(nn.Linear(2, 1))
    """
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # no public way to ask
    for name, part in model.named_modules():
        if any(getattr(part, kind) for kind in kinds):
            raise ValueError(
                f"model has hooks of others at {name or 'the top'!r}, which may change what is measured: remove them; "
                "those of old weight_norm and spectral_norm by torch.nn.utils.remove_weight_norm and its like"
            )
