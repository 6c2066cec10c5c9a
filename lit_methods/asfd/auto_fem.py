"""Auto-FEM: fusion across levels, then context within each, as a genotype has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.asfd.genotype import Genotype, Node, read_genotype
from lit_methods.asfd.operations import begin, build_op


def resampled(x: Tensor, from_level: int, to_level: int, like: Tensor) -> Tensor:
    """A map of a level at the size of the level beside it.

    From coarse to fine each position takes its nearest one; from fine to coarse the largest of 3x3 stays of every
    second one, which gives half the size, rounded up.

    Args:
        x: (B, C, h, w) of ``from_level``.
        from_level: of ``x``.
        to_level: the same, or the one above or below.
        like: any map of ``to_level``, whose height and width are wanted.

    Example:
        >>> import torch
        >>> fine, coarse = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 3, 4)
        >>> resampled(coarse, 3, 2, fine).shape[2:], resampled(fine, 2, 3, coarse).shape[2:]
        (torch.Size([5, 8]), torch.Size([3, 4]))
    """
    if from_level > to_level:
        return F.interpolate(x, size=like.shape[-2:], mode="nearest")
    if from_level < to_level:
        return F.max_pool2d(x, 3, stride=2, padding=1)
    return x


def total(maps: Sequence[Tensor]) -> Tensor:
    """The sum of some maps of the same shape.

    Args:
        maps: at least one.

    Example:
        >>> import torch
        >>> total([torch.ones(2), torch.ones(2), torch.ones(2)])
        tensor([3., 3.])
    """
    result = maps[0]
    for x in maps[1:]:
        result = result + x
    return result


class AutoFEM(nn.Module):
    """The feature enhancement module of one repeat: AutoFEM-FPN across levels, then AutoFEM-CPM within each.

    Args:
        genotype: which operations, and what they read; also as its dict, or the path of its JSON file.
        channels: of all maps.
        levels: how many, from level 2 on, or their numbers; those of the genotype.
        outputs: levels whose outputs are looked at; ``None`` is all. The others hand their input on, only its size
            counts, so that no parameter is without a gradient.

    Attributes:
        genotype: as a ``Genotype``.
        levels: numbers.
        inputs: levels of which more than the size is looked at.

    Raises:
        ValueError: the genotype has other levels, or is none.

    Source:
        Section 2.2 of ASFD's specification. The top level is fused first; the coarser neighbour of a level is the fused
        one, the finer neighbour the lateral feature. Each level has weights of its own, also where all share one
        architecture.

    Example:
        >>> import torch
        >>> from lit_methods.asfd.genotype import default_genotype
        >>> fem = AutoFEM(default_genotype("d0", levels=2), channels=4, levels=2)
        >>> [tuple(x.shape) for x in fem([torch.zeros(1, 4, 5, 7), torch.zeros(1, 4, 3, 4)])]
        [(1, 4, 5, 7), (1, 4, 3, 4)]
    """

    def __init__(
        self,
        genotype: Genotype | Mapping[str, Any] | str | Path,
        channels: int,
        levels: int | Sequence[int] = 6,
        outputs: Collection[int] | None = None,
    ) -> None:
        super().__init__()
        found = read_genotype(genotype)
        if found is None:
            raise ValueError("genotype is None; give one, such as lit_methods.asfd.genotype.default_genotype('d0')")
        wanted = tuple(range(2, 2 + levels)) if isinstance(levels, int) else tuple(levels)
        if wanted != found.levels:
            raise ValueError(
                f"levels={levels} are {_words(wanted)}, but genotype has nodes for {_words(found.levels)}; give a "
                "genotype of the same levels"
            )
        self.genotype, self.levels = found, wanted
        outputs = wanted if outputs is None else outputs
        fused = {*outputs}  # with the coarser ones that these read
        for level, node in zip(wanted, found.fpn, strict=True):
            fused |= {level + 1} & _sources(node) if level in fused else set()
        read = {level: _sources(node) - {level + 1} for level, node in zip(wanted, found.fpn, strict=True)}
        self.inputs = tuple(sorted(set().union(*(read[level] for level in fused))))
        self.fpn = nn.ModuleDict(
            {str(level): _ops(node, channels) for level, node in zip(wanted, found.fpn, strict=True) if level in fused}
        )
        self.cpm = nn.ModuleDict(
            {
                str(level): nn.ModuleList(_ops(node, channels) for node in found.context(level))
                for level in wanted
                if level in outputs
            }
        )
        begin(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of all levels, the finest first, to maps of the same shapes."""
        fused = dict(zip(self.levels, maps, strict=True))  # from the top on those of the laterals are replaced
        for level, node, like in reversed([*zip(self.levels, self.genotype.fpn, maps, strict=True)]):
            if str(level) in self.fpn:
                read = {source: resampled(fused[source], source, level, like) for source in sorted(_sources(node))}
                fused[level] = _summed(self.fpn[str(level)], node, read)
        return [self._in_context(level, x) for level, x in fused.items()]

    def _in_context(self, level: int, x: Tensor) -> Tensor:
        if str(level) not in self.cpm:
            return x
        states = {0: x}
        nodes = zip(self.cpm[str(level)].children(), self.genotype.context(level), strict=True)
        for number, (ops, node) in enumerate(nodes, start=1):
            states[number] = _summed(ops, node, states)
        return total([*states.values()])


def repeated(genotype: Genotype, channels: int, repeats: int) -> nn.Sequential:
    """Several ``AutoFEM`` one behind the other, without the parts whose output nobody reads.

    A genotype may leave the lateral feature of a level out, and then also what the repeat before makes of that level.

    Args:
        genotype: of all of them.
        channels: of all maps.
        repeats: how many.

    Example:
        >>> from lit_methods.asfd.genotype import default_genotype
        >>> [fem.inputs for fem in repeated(default_genotype(), channels=4, repeats=2)]
        [(2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7)]
    """
    fems: list[AutoFEM] = []
    for _ in range(repeats):
        fems.insert(0, AutoFEM(genotype, channels, genotype.levels, fems[0].inputs if fems else None))
    return nn.Sequential(*fems)


def _ops(node: Node, channels: int) -> nn.ModuleList:
    return nn.ModuleList(build_op(op, channels) for op, _ in node)


def _sources(node: Node) -> set[int]:
    return {source for _, sources in node for source in sources}


def _summed(ops: nn.Module, node: Node, read: Mapping[int, Tensor]) -> Tensor:
    """The sum of a node's branches, each of which sums what it reads first."""
    return total(
        [op(total([read[source] for source in sources])) for op, (_, sources) in zip(ops.children(), node, strict=True)]
    )


def _words(levels: Sequence[int]) -> str:
    return ", ".join(map(str, levels)) or "none"
