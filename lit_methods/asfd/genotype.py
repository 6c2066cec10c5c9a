"""Which operation stands on which edge of Auto-FEM: the form that is searched, stored and built."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self, overload

import torch

from lit_methods.asfd.sizes import ASFD_SIZES
from lit_methods.functional.suggestions import nearest

OPERATIONS = (
    "identity",
    "conv_1x1",
    "conv_3x3",
    "conv_3x3_d2",
    "conv_3x3_d3",
    "conv_1x3_3x1",
    "sep_conv_3x3",
    "sep_conv_5x5",
)
"""The candidates of the search, in the order of the columns of its weights; ``d2`` is a dilation of 2."""

KNOWN = (*OPERATIONS, "sep_conv_3x3_d2")
"""All operations that can be built: the candidates, and one that only the default genotype uses."""

LEVELS = tuple(range(2, 8))
"""Levels of the detector; the map of level l has a stride of 2 ** l pixels."""

CPM_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""Edges (source, node) of AutoFEM-CPM, nodes ascending, of a node by their source; node 0 is the input."""

Branch = tuple[str, tuple[int, ...]]
Node = tuple[Branch, ...]
Nodes = tuple[Node, ...]

_FORM = (
    'a genotype is {"fpn": {"2": [["conv_3x3", 2, 3]], ...}, "cpm": [[["conv_3x3", 0]], ...]}: for each level, then '
    "for each context node, lists of an operation and the numbers that it reads"
)


@dataclass(frozen=True)
class Genotype:
    """Auto-FEM as a search found it, or as somebody wrote it down.

    A node is a sum of branches. A branch is an operation and the numbers that it reads; the maps of several numbers are
    summed first, then the operation is applied once. Lists are accepted and become tuples.

    Args:
        fpn: a node for each level, from level 2 on. A node may read its own level (the lateral feature), the one above
            (which is finished by then) and the one below (the lateral feature again).
        cpm: the nodes 1, 2, ... of the context graph of a level, which read nodes before them, 0 being the input; one
            such graph for all levels, or one for each.

    Raises:
        ValueError: it is not of this form.

    Source:
        Section 2.2 of ASFD's specification; the published tables could not be read. Ours: the branch that sums before
        it convolves, which the default genotype needs.

    Example:
        >>> chain = [[["conv_3x3", [0]]], [["conv_3x3_d2", [1]]]]
        >>> found = Genotype(fpn=[[["conv_1x1", [2, 3]]], [["identity", [3]]]], cpm=[chain])
        >>> found.fpn[0], found.key()
        ((('conv_1x1', (2, 3)),), '1<23/0<3|2<0/3<1')
    """

    fpn: Nodes
    cpm: tuple[Nodes, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fpn", _nodes("fpn", self.fpn, first=LEVELS[0]))
        levels = self.levels
        for level, node in zip(levels, self.fpn, strict=True):
            near = {level - 1, level, level + 1} & {*levels}
            _check_sources(f"level {level} of 'fpn'", node, near, "its own level and those beside it")
        if not isinstance(self.cpm, list | tuple) or len(self.cpm) not in (1, len(levels)):
            raise ValueError(
                f"genotype has cpm={brief(self.cpm)}; give one context graph, or one for each of {len(levels)} levels"
            )
        graphs = tuple(_nodes("cpm", graph, first=1) for graph in self.cpm)
        for graph in graphs:
            for number, node in enumerate(graph, start=1):
                _check_sources(f"node {number} of 'cpm'", node, {*range(number)}, "the nodes before it")
        object.__setattr__(self, "cpm", graphs)

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels that it has nodes for, from 2 on."""
        return tuple(range(LEVELS[0], LEVELS[0] + len(self.fpn)))

    @property
    def shared_cpm(self) -> bool:
        """Whether all levels have the same context graph."""
        return len(self.cpm) == 1

    def context(self, level: int) -> Nodes:
        """Nodes of the context graph of a level.

        Args:
            level: one of ``levels``.

        Example:
            >>> len(default_genotype().context(7))
            3
        """
        return self.cpm[0 if self.shared_cpm else self.levels.index(level)]

    def to_dict(self) -> dict[str, Any]:
        """The form for JSON and checkpoints: a branch is a list of the operation and the numbers that it reads.

        ``cpm`` is a list of nodes, or where levels differ a dict of such lists by level.

        Example:
            >>> default_genotype("full").to_dict()["fpn"]["2"], default_genotype("full").to_dict()["cpm"][1]
            ([['conv_3x3', 2, 3]], [['conv_3x3_d2', 1]])
        """
        graphs = [_plain(graph) for graph in self.cpm]
        return {
            "fpn": dict(zip(map(str, self.levels), _plain(self.fpn), strict=True)),
            "cpm": graphs[0] if self.shared_cpm else dict(zip(map(str, self.levels), graphs, strict=True)),
        }

    @classmethod
    def from_dict(cls, source: Mapping[str, Any]) -> Self:
        """A genotype from its form for JSON.

        Args:
            source: has ``fpn`` and ``cpm``; other keys are ignored.

        Raises:
            ValueError: it has not, or they are of another form.

        Example:
            >>> found = default_genotype()
            >>> Genotype.from_dict(found.to_dict()) == found
            True
        """
        if not isinstance(source, Mapping) or not {"fpn", "cpm"} <= {*source}:
            raise ValueError(f"this is no genotype: {brief(source)}; {_FORM}")
        fpn, cpm = source["fpn"], source["cpm"]
        levels = _by_level("fpn", fpn)
        graphs = _by_level("cpm", cpm) if isinstance(cpm, Mapping) else [cpm]
        return cls(
            tuple(_branches("fpn", node) for node in levels),
            tuple(tuple(_branches("cpm", node) for node in _listed("cpm", graph)) for graph in graphs),
        )

    def key(self) -> str:
        """Short text that is the same for the same network, whatever the order of branches and of what they read.

        Nodes end with ``/``, graphs with ``|``; an operation is its place in ``KNOWN``.

        Example:
            >>> default_genotype("full").key()
            '2<23/2<34/2<45/2<56/2<67/2<7|2<0/3<1/2<2'
        """
        return "|".join("/".join(map(_node_key, graph)) for graph in (self.fpn, *self.cpm))


def default_genotype(ops: str = "separable", levels: int = len(LEVELS)) -> Genotype:
    """The genotype to use where no search was run.

    Each level sums its lateral feature and the finished one above it, then convolves once; the context graph is a chain
    of three, the second dilated by 2.

    Args:
        ops: ``"separable"``, depth-wise separable, as of D0 and D1; ``"full"``, as of D2 to D6; or a size, ``"d0"`` to
            ``"d6"``.
        levels: how many, from level 2 on.

    Raises:
        ValueError: there are no such operations.

    Source:
        Section 2.2 of ASFD's specification, a decision of the project.

    Example:
        >>> default_genotype("d0").key()
        '6<23/6<34/6<45/6<56/6<67/6<7|6<0/8<1/6<2'
    """
    ops = ASFD_SIZES[ops].ops if ops in ASFD_SIZES else ops
    if ops not in ("separable", "full"):
        raise ValueError(f"ops={ops!r} must be 'separable', 'full' or a size, 'd0' to 'd6'")
    plain = "sep_conv_3x3" if ops == "separable" else "conv_3x3"
    top = LEVELS[0] + levels - 1
    fpn = [((plain, (level, level + 1) if level < top else (level,)),) for level in range(LEVELS[0], top + 1)]
    chain = ((plain, (0,)),), ((f"{plain}_d2", (1,)),), ((plain, (2,)),)
    return Genotype(tuple(fpn), (chain,))


def fpn_edges(levels: Sequence[int] = LEVELS) -> tuple[tuple[int, int], ...]:
    """Edges (source, node) of AutoFEM-FPN, nodes ascending, of a node by their source.

    Args:
        levels: consecutive.

    Example:
        >>> fpn_edges([2, 3, 4])
        ((2, 2), (3, 2), (2, 3), (3, 3), (4, 3), (3, 4), (4, 4))
    """
    return tuple((source, node) for node in levels for source in (node - 1, node, node + 1) if source in levels)


def random_genotype(
    generator: torch.Generator,
    *,
    fpn_ops: Sequence[str] = OPERATIONS,
    cpm_ops: Sequence[str] = OPERATIONS,
    shared_cpm: bool = True,
    keep: int = 2,
) -> Genotype:
    """A genotype as a search may find it, all of them with equal chances: what a search has to beat.

    Args:
        generator: each call advances it.
        fpn_ops: operations to draw from, for the levels.
        cpm_ops: likewise, for the context graph.
        shared_cpm: one context graph for all levels, else one for each.
        keep: so many incoming edges of a node are kept, or all where it has fewer.

    Example:
        >>> a, b = (random_genotype(torch.Generator().manual_seed(3)) for _ in range(2))
        >>> a == b, [len(node) for node in a.fpn], [len(node) for node in a.cpm[0]]
        (True, [2, 2, 2, 2, 2, 2], [1, 2, 2])
    """

    where: Any = {"generator": generator, "device": generator.device}  # whatever the default device is

    def draw(edges: Sequence[tuple[int, int]], ops: Sequence[str]) -> Nodes:
        kept = []
        for node in sorted({node for _, node in edges}):
            sources = [source for source, target in edges if target == node]
            places = torch.randperm(len(sources), **where)[:keep].sort().values
            for place in places.tolist():
                kept.append((sources[place], node, ops[int(torch.randint(len(ops), (), **where))]))
        return grouped(kept)

    fpn = draw(fpn_edges(), fpn_ops)
    return Genotype(fpn, tuple(draw(CPM_EDGES, cpm_ops) for _ in range(1 if shared_cpm else len(LEVELS))))


def grouped(edges: Sequence[tuple[int, int, str]]) -> Nodes:
    """Edges as the branches of their nodes, each with an operation of its own.

    Args:
        edges: (source, node, operation), nodes ascending.

    Example:
        >>> grouped([(0, 1, "conv_1x1"), (0, 2, "conv_3x3"), (1, 2, "identity")])
        ((('conv_1x1', (0,)),), (('conv_3x3', (0,)), ('identity', (1,))))
    """
    nodes: dict[int, list[Branch]] = {}
    for source, node, op in edges:
        nodes.setdefault(node, []).append((op, (source,)))
    return tuple(map(tuple, nodes.values()))


@overload
def read_genotype(source: None) -> None: ...
@overload
def read_genotype(source: Mapping[str, Any] | str | Path | Genotype) -> Genotype: ...
@overload
def read_genotype(source: Mapping[str, Any] | str | Path | Genotype | None) -> Genotype | None: ...
def read_genotype(source: Mapping[str, Any] | str | Path | Genotype | None) -> Genotype | None:
    """A genotype from whatever holds one; ``None`` stays ``None``, for the default of a size.

    Args:
        source: a genotype, its dict, JSON text, or the path of a JSON file; dicts may hold it under ``genotype``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is there is no genotype.

    Example:
        >>> read_genotype(json.dumps({"genotype": default_genotype().to_dict(), "epoch": 3})).levels
        (2, 3, 4, 5, 6, 7)
    """
    if source is None or isinstance(source, Genotype):
        return source
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if not isinstance(source, str | Path):
        raise ValueError(f"genotype={brief(source)} is neither a genotype, nor a dict, nor a path; {_FORM}")
    text, where = str(source), f"genotype={brief(str(source))}"
    if isinstance(source, Path) or not text.lstrip().startswith("{"):
        where = f"genotype={text!r}"
        try:
            text = Path(source).read_text("utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(f"{where} does not exist; give a JSON file that a search wrote") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{where} cannot be read as text: {error}; give a JSON file") from None
    try:
        return _from_mapping(json.loads(text))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _from_mapping(source: Any) -> Genotype:
    nested = source.get("genotype") if isinstance(source, Mapping) else None
    return Genotype.from_dict(nested if isinstance(nested, Mapping) else source)


def _plain(nodes: Nodes) -> list[list[list[Any]]]:
    return [[[op, *sources] for op, sources in node] for node in nodes]


def _node_key(node: Node) -> str:
    return "+".join(sorted(f"{KNOWN.index(op)}<{''.join(map(str, sorted(sources)))}" for op, sources in node))


def _listed(name: str, value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name!r} has {brief(value)} where a list should be; {_FORM}")
    return value


def _by_level(name: str, graph: Any) -> list[Any]:
    """The values of a dict whose keys are the levels from 2 on, in their order."""
    if not isinstance(graph, Mapping):
        raise ValueError(f"{name!r} is {brief(graph)}, not a dict by level; {_FORM}")
    found = {str(key): value for key, value in graph.items()}
    wanted = [str(LEVELS[0] + place) for place in range(len(found))]
    if not found or {*found} != {*wanted}:
        raise ValueError(f"{name!r} has the levels {', '.join(found) or 'none'}; they must be 2, 3, ... without a gap")
    return [found[key] for key in wanted]


def _branches(name: str, node: Any) -> Node:
    """A node of the form for JSON, (operation, number, ...) for a branch, in that of the dataclass."""
    branches = [_listed(name, branch) for branch in _listed(name, node)]
    return tuple((branch[0], tuple(branch[1:])) if branch else ("", ()) for branch in branches)


def _nodes(name: str, nodes: Any, first: int) -> Nodes:
    if not isinstance(nodes, list | tuple) or not nodes:
        raise ValueError(f"genotype has {name}={brief(nodes)}, which is no list of nodes; {_FORM}")
    return tuple(tuple(_node(name, number, node)) for number, node in enumerate(nodes, start=first))


def _node(name: str, number: int, node: Any) -> Iterator[Branch]:
    where = f"{'level' if name == 'fpn' else 'node'} {number} of {name!r}"
    if not isinstance(node, list | tuple) or not node:
        raise ValueError(f"{where} is {brief(node)}, not a list of at least one branch; {_FORM}")
    for branch in node:
        if not isinstance(branch, list | tuple) or len(branch) != 2 or not isinstance(branch[1], list | tuple):
            raise ValueError(f"{where} has {brief(branch)}, which is no operation with what it reads; {_FORM}")
        op, sources = branch
        if op not in KNOWN:
            near = nearest(op, KNOWN) if isinstance(op, str) else ""
            raise ValueError(f"{where} has an operation {brief(op)}{near}; there are {', '.join(KNOWN)}")
        yield op, tuple(sources)


def _check_sources(where: str, node: Node, known: set[int], words: str) -> None:
    for op, sources in node:
        if not sources:
            raise ValueError(f"{where}: {op!r} reads nothing; it may read {words}, {sorted(known)}")
        for source in sources:
            if type(source) is not int or source not in known:
                raise ValueError(f"{where}: {op!r} reads {brief(source)}; it may read {words}, {sorted(known)}")
        if len({*sources}) < len(sources):
            raise ValueError(f"{where}: {op!r} reads a map twice, {list(sources)}; name each once")
