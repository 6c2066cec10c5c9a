"""From hard gates to the smaller network that computes what the gated one does."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lit_methods.backbones import BACKBONES, PrunePlan, find_backbone, planned_network, prune_model
from lit_methods.backbones.kept import GatedPlan
from lit_methods.functional.suggestions import nearest
from lit_methods.nad.removal import Masks, open_ids, without_closed


def sub_network(
    model: nn.Module, masks: Masks, *, arch: str | None = None, input_size: Sequence[int] = (3, 224, 224)
) -> nn.Module:
    """The network without the channels that hard gates close; its logits are those of the gated network.

    A network of ``BACKBONES`` whose table tells which filters go with each gate loses all that is closed. Any other
    one is traced: it gets a ``GatedLayer`` in the place of each module with closed channels and then loses those
    channels that arrive as zeros wherever they are read. That is tried out on random weights before it is believed;
    what cannot be followed stays and is masked. A batch norm behind a gate turns zeros into constants, which cannot
    be removed without a trace, so DenseNets hardly shrink.

    Args:
        model: the full network, in eval mode, without hooks at the gates; not changed.
        masks: module name -> (C,) bool, the channels of its output that are open; modules without a mask are.
        arch: its key in ``BACKBONES``, ``None`` for an object.
        input_size: (C, H, W) of an image, where it is traced.

    Returns:
        A new module of the same dtype, device and modes, without hooks.

    Raises:
        ValueError: a mask without an open channel, of another length or type; no such module; no such ``arch``. Where
            it is traced: torch-pruning is missing; the network does not run on such images.

    Source:
        Ours; the official code multiplies.

    Example:
        >>> from torch import tensor
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
        >>> sub_network(net, {"1": tensor([True, False, False, True])}, input_size=(3, 8, 8))[2]
        Conv2d(2, 2, kernel_size=(1, 1), stride=(1, 1))
    """
    _check_points(model, masks)
    if arch is not None and masks.keys() <= _filters(arch).keys() and _is_full(model, arch):
        return prune_model(model, gated_plan(arch, masks))
    return without_closed(model, masks, input_size)


def gated_plan(arch: str, masks: Masks) -> GatedPlan:
    """What hard gates leave of a network with a table; for ``prune_model`` and ``build_backbone``.

    Args:
        arch: a key of ``BACKBONES`` whose gates name the convolutions that go with them.
        masks: gate point -> (C,) bool, the channels that are open; points without a mask are.

    Raises:
        ValueError: a mask without an open channel, of another length or type; no such gate point; no such table.

    Example:
        >>> from torch import arange
        >>> gated_plan("resnet20", {"layer1.0": arange(16) < 3})
        GatedPlan(arch='resnet20', keep={'layer1.0.conv2': [0, 1, 2]}, residual='live', gates={'layer1.0': [0, 1, 2]})
    """
    filters = _filters(arch)
    if not filters:
        having = ", ".join(name for name in BACKBONES if _filters(name))
        raise ValueError(
            f"no table tells which filters of {arch} go with its gates; there is one for {having}. "
            "sub_network traces the others"
        )
    full = planned_network(PrunePlan(arch, {}))
    keep: dict[str, list[int]] = {}
    gates: dict[str, list[int]] = {}
    for point, mask in masks.items():
        if point not in filters:
            raise ValueError(f"{arch} has no gate point {point!r}{nearest(point, filters)}")
        ids = open_ids(point, mask, len(full.get_parameter(f"{filters[point][0]}.weight")))
        if len(ids) < len(mask):
            gates[point] = ids
            keep |= dict.fromkeys(filters[point], ids)
    return GatedPlan(arch, keep, gates=gates)


def _filters(arch: str) -> dict[str, tuple[str, ...]]:
    """Gate point -> the convolutions whose filters go with it, for a network that can be built under such a plan."""
    entry = find_backbone(arch)
    table = entry.gates() if entry.gates and entry.prune_points else {}
    return table if all(table.values()) else {}


def _is_full(model: nn.Module, arch: str) -> bool:
    """Whether no convolution was narrowed before: the table numbers the channels of the full network."""
    nets = (model, planned_network(PrunePlan(arch, {})))
    wide, full = ({name: p.shape for name, p in net.named_parameters() if p.ndim == 4} for net in nets)
    return wide == full


def _check_points(model: nn.Module, masks: Masks) -> None:
    names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    for point, mask in masks.items():
        if point not in names:
            raise ValueError(
                f"masks names {point!r}, which is no module of the {type(model).__name__}{nearest(point, names)}"
            )
        open_ids(point, mask)
