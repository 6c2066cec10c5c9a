"""The network of the search: Auto-FEM with all candidates on all edges, weighted by the architecture's parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_methods.asfd.auto_fem import resampled, total
from lit_methods.asfd.features import Neck, build_features
from lit_methods.asfd.functional import discretize_edges
from lit_methods.asfd.genotype import CPM_EDGES, KNOWN, LEVELS, OPERATIONS, Genotype, Nodes, fpn_edges, grouped
from lit_methods.asfd.model import ASFDHead, Mode, checked_channels
from lit_methods.asfd.operations import MixedOp, begin
from lit_methods.asfd.sizes import find_size
from lit_methods.functional.suggestions import nearest

PARTIAL_FROM = 64  # channels from which on a search is partial unless told otherwise

Edges = tuple[tuple[int, int], ...]


class MixedGraph(nn.Module):
    """A mixed operation on each edge of a graph.

    Args:
        edges: (source, node), nodes ascending.
        channels: of all maps.
        partial: see ``MixedOp``.
        candidates: names of operations.

    Example:
        >>> graph, even = MixedGraph(CPM_EDGES, channels=4), torch.full((6, 8), 1 / 8)
        >>> graph.node(1, {0: torch.zeros(2, 4, 5, 5)}, even).shape
        torch.Size([2, 4, 5, 5])
    """

    def __init__(self, edges: Edges, channels: int, partial: bool = False, candidates: Sequence[str] = OPERATIONS):
        super().__init__()
        self.edges = edges
        self.mixed = nn.ModuleList(MixedOp(channels, partial, candidates) for _ in edges)

    def node(self, number: int, read: dict[int, Tensor], weights: Tensor, shares: Tensor | None = None) -> Tensor:
        """The sum over the incoming edges of a node.

        Args:
            number: of the node.
            read: the maps of its sources, by their numbers.
            weights: (E, O), after the softmax.
            shares: (E,) weights of whole edges; ``None`` is 1 for all.
        """
        parts = []
        for place, (source, node) in enumerate(self.edges):
            if node == number:
                y = self.mixed[place](read[source], weights[place])
                parts.append(y if shares is None else shares[place] * y)
        return total(parts)


class SearchFEM(nn.Module):
    """One repeat of Auto-FEM with all candidates on all edges.

    Args:
        channels: of all maps.
        partial: see ``MixedOp``.
        fpn_ops: candidates across levels.
        cpm_ops: candidates within a level.

    Example:
        >>> fem, even = SearchFEM(4), torch.full((22, 8), 1 / 8)
        >>> maps = [torch.zeros(2, 4, side, side) for side in (32, 16, 8, 4, 2, 1)]
        >>> [x.shape[-1] for x in fem(maps, even[:16], [even[16:]] * 6)]
        [32, 16, 8, 4, 2, 1]
    """

    def __init__(
        self,
        channels: int,
        partial: bool = False,
        fpn_ops: Sequence[str] = OPERATIONS,
        cpm_ops: Sequence[str] = OPERATIONS,
    ) -> None:
        super().__init__()
        self.fpn = MixedGraph(fpn_edges(), channels, partial, fpn_ops)
        self.cpm = nn.ModuleList(MixedGraph(CPM_EDGES, channels, partial, cpm_ops) for _ in LEVELS)
        begin(self)

    def forward(
        self,
        maps: Sequence[Tensor],
        fpn: Tensor,
        cpm: Sequence[Tensor],
        fpn_shares: Tensor | None = None,
        cpm_shares: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Maps of all levels, the finest first, to maps of the same shapes.

        Args:
            maps: (B, channels, h, w) each.
            fpn: (16, O) weights, after the softmax.
            cpm: (6, O) for each level.
            fpn_shares: (16,) weights of whole edges, or ``None``.
            cpm_shares: (6,) for each level, or ``None``.
        """
        fused = dict(zip(LEVELS, maps, strict=True))  # from the top on those of the laterals are replaced
        for level, like in reversed([*fused.items()]):
            near = {source for source, node in self.fpn.edges if node == level}
            read = {source: resampled(fused[source], source, level, like) for source in sorted(near)}
            fused[level] = self.fpn.node(level, read, fpn, fpn_shares)
        outputs = []
        for place, (x, graph) in enumerate(zip(fused.values(), self.cpm.children(), strict=True)):
            assert isinstance(graph, MixedGraph)
            states = {0: x}
            for number in (1, 2, 3):
                shares = None if cpm_shares is None else cpm_shares[place]
                states[number] = graph.node(number, states, cpm[place], shares)
            outputs.append(total([*states.values()]))
        return outputs


class SearchNet(nn.Module):
    """A detector whose Auto-FEM is still open: every edge holds all candidates, weighted by a softmax.

    Args:
        size: whose backbone, repeats and head are used.
        channels: of Auto-FEM and head.
        partial: only a quarter of the channels goes through the candidates, and the incoming edges of a node are
            weighted against each other by a softmax; ``None``: from 64 channels on.
        shared_cpm: one context architecture for all levels, else one for each.
        fpn_ops: candidates across levels; ``None``: ``OPERATIONS``.
        cpm_ops: candidates within a level, likewise.
        cls_mode: see ``ASFDHead``.
        prior: likewise.

    Attributes:
        edge_parameters: those of the architecture, by name: ``fpn`` (16, O), rows in the order of ``fpn_edges()``, and
            ``cpm`` (6, O), rows in that of ``CPM_EDGES``, or (6 levels, 6, O); where the search is partial also
            ``fpn_shares`` (16,) and ``cpm_shares`` (6,) or (6, 6), all before their softmax. They are shared by all
            repeats.
        cls_weight: (2, channels) in mode ``"cosine"``, else ``None``.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Sections 2.2 and 2.3 of ASFD's specification, decisions of the project after DARTS, arXiv 1806.09055, and
        PC-DARTS, arXiv 1907.05737. Batch norms of the candidates have no parameters, as in both.

    Example:
        >>> net = SearchNet("d0", channels=4)
        >>> cls, loc = net(torch.zeros(2, 3, 128, 128))
        >>> cls.shape, round(float(net.entropy()), 3), len(net.genotype().cpm[0])  # ln 8 = 2.079
        (torch.Size([2, 1365, 2]), 2.079, 3)
    """

    def __init__(
        self,
        size: str = "d4",
        channels: int | None = 64,
        partial: bool | None = None,
        shared_cpm: bool = True,
        fpn_ops: Sequence[str] | None = None,
        cpm_ops: Sequence[str] | None = None,
        cls_mode: Mode = "logit",
        prior: float | None = None,
    ) -> None:
        super().__init__()
        row = find_size(size)
        self.size, self.channels, self.shared_cpm = size, checked_channels(channels, row), shared_cpm
        self.partial = self.channels >= PARTIAL_FROM if partial is None else partial
        self.fpn_ops = _candidates("fpn_ops", fpn_ops)
        self.cpm_ops = _candidates("cpm_ops", cpm_ops)
        self.backbone = build_features(row.backbone)
        self.neck = Neck(self.backbone.out_channels, self.channels, light=row.ops == "separable")
        self.fem = nn.ModuleList(
            SearchFEM(self.channels, self.partial, self.fpn_ops, self.cpm_ops) for _ in range(row.repeats)
        )
        self.head = ASFDHead(self.channels, row.convs, cls_mode, prior)
        graphs = () if shared_cpm else (len(LEVELS),)
        shapes: dict[str, tuple[int, ...]] = {
            "fpn": (len(fpn_edges()), len(self.fpn_ops)),
            "cpm": (*graphs, len(CPM_EDGES), len(self.cpm_ops)),
        }
        if self.partial:
            shapes |= {f"{name}_shares": shape[:-1] for name, shape in shapes.items()}
        self.edge_parameters = nn.ParameterDict({name: 1e-3 * torch.randn(shape) for name, shape in shapes.items()})

    @property
    def cls_weight(self) -> nn.Parameter | None:
        """As of ``ASFDNet``."""
        return self.head.cls_weight

    def arch_parameters(self) -> list[nn.Parameter]:
        """The parameters of the architecture."""
        return list(self.edge_parameters.values())

    def weight_parameters(self) -> list[nn.Parameter]:
        """All others."""
        own = {id(parameter) for parameter in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """As of ``ASFDNet``: scores (B, A, 2), or features (B, A, channels), and codes (B, A, 4).

        Args:
            image: (B, 3, H, W), normalised.
        """
        weights = self._weights()
        levels = {
            name: x.expand(len(LEVELS), *x.shape[-x.ndim :]) if self.shared_cpm else x for name, x in weights.items()
        }
        maps = self.neck(self.backbone(image))
        for fem in self.fem:
            maps = fem(maps, weights["fpn"], levels["cpm"], weights.get("fpn_shares"), levels.get("cpm_shares"))
        return self.head(maps)

    def extra_repr(self) -> str:
        """Which search it is."""
        return f"size={self.size!r}, channels={self.channels}, partial={self.partial}, shared_cpm={self.shared_cpm}"

    def _weights(self) -> dict[str, Tensor]:
        """Weights of operations and of edges, after their softmax."""
        weights = {}
        for name, parameter in self.edge_parameters.items():
            edges = fpn_edges() if name.startswith("fpn") else CPM_EDGES
            weights[name] = _within_nodes(parameter, edges) if name.endswith("shares") else parameter.softmax(-1)
        return weights

    @torch.no_grad()
    def alphas(self) -> dict[str, Tensor]:
        """What ``edge_parameters`` are after the softmax, by the same names, copies on the CPU."""
        return {name: weights.float().cpu().clone() for name, weights in self._weights().items()}

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Entropy of the operations' weights, nats, mean over edges: ln O while nothing is decided, 0 at the end."""
        weights = self._weights()
        entropies = [torch.special.entr(weights[name].float()).sum(-1).flatten() for name in ("fpn", "cpm")]
        return torch.cat(entropies).mean()

    @torch.no_grad()
    def genotype(self, keep: int = 2) -> Genotype:
        """What the search has decided so far: on each edge the best operation, for each node the best edges.

        Where the search is partial, the weights of an edge are multiplied by its share first, as PC-DARTS does it.

        Args:
            keep: so many edges of a node stay, or all where it has fewer.
        """
        weights = self.alphas()
        for name in ("fpn", "cpm"):
            if self.partial:
                weights[name] = weights[name] * weights[f"{name}_shares"][..., None]
        fpn = _decided(weights["fpn"], fpn_edges(), self.fpn_ops, keep)
        graphs = weights["cpm"][None] if self.shared_cpm else weights["cpm"]
        return Genotype(fpn, tuple(_decided(graph, CPM_EDGES, self.cpm_ops, keep) for graph in graphs))


def _decided(weights: Tensor, edges: Edges, ops: Sequence[str], keep: int) -> Nodes:
    kept, best = (found.tolist() for found in discretize_edges(weights, torch.tensor(edges, device="cpu"), keep=keep))
    return grouped([(*edges[edge], ops[op]) for edge, op in zip(kept, best, strict=True)])


def _within_nodes(parameter: Tensor, edges: Edges) -> Tensor:
    """Softmax over the incoming edges of each node, (..., E)."""
    counts = [sum(target == node for _, target in edges) for node in sorted({node for _, node in edges})]
    return torch.cat([part.softmax(-1) for part in parameter.split(counts, -1)], -1)


def _candidates(name: str, ops: Sequence[str] | None) -> tuple[str, ...]:
    if ops is None:
        return OPERATIONS
    if not ops or len({*ops}) < len(ops):
        raise ValueError(f"{name}={list(ops)} must name at least one operation, each once")
    if odd := [op for op in ops if op not in KNOWN]:
        raise ValueError(f"{name} has an operation {odd[0]!r}{nearest(odd[0], KNOWN)}; there are {', '.join(KNOWN)}")
    return tuple(ops)
