"""DARTS' supernet: every operation on every edge, weighted by the architecture weights."""

import torch
from torch import Tensor, nn

from lit_methods.bpe_mip.cells import CellSite, build_inputs, build_op, build_stem, cell_sites, check_sides
from lit_methods.bpe_mip.search_space import PRIMITIVES, Genotype, parse_alpha

MIXED = PRIMITIVES[:-1]  # the last is "none", a summand of zero, which only takes its share of the softmax
NODES = 4


class MixedCell(nn.Module):
    """Four nodes; each sums all operations on all states before it.

    Args:
        site: where the cell stands.

    Example:
        >>> cell = MixedCell(CellSite((6, 6), 4, reduction=True, reduction_prev=False))
        >>> even = [torch.full((7 * (k + 2),), 1 / 8) for k in range(4)]
        >>> cell(torch.zeros(2, 6, 8, 8), torch.zeros(2, 6, 8, 8), even).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(self, site: CellSite) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = build_inputs(site, affine=False)
        self.ops = nn.ModuleList(
            build_op(name, site.width, 2 if site.reduction and source < 2 else 1, affine=False)
            for k in range(NODES)
            for source in range(k + 2)
            for name in MIXED
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: list[Tensor]) -> Tensor:
        """The outputs of the two cells before, the elder first, to (N, 4 * width, H, W).

        ``weights`` holds one tensor per node: the operations' factors on the first state, then on the second, ...
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        ops = iter(self.ops)
        for weight in weights:
            terms = [next(ops)(state) for state in states for _ in MIXED]
            states.append(_weighted_sum(terms, weight))
        return torch.cat(states[2:], 1)


def _weighted_sum(terms: list[Tensor], weight: Tensor) -> Tensor:
    stacked = torch.stack(terms)
    return (weight.to(stacked.dtype) @ stacked.flatten(1)).view(stacked.shape[1:])


class DartsSupernet(nn.Module):
    """The network that DARTS searches in; architecture weights start at 1e-3 N(0, 1).

    Args:
        channels: of a node in the first cells; they double at each reduction.
        layers: cells, at least 3; reductions are number ``layers // 3`` and ``2 * layers // 3``, counted from 0.
        num_classes: outputs.

    Raises:
        ValueError: an argument is out of range; in a pass, images whose sides are no multiples of 4.

    Source:
        DARTS, arXiv 1806.09055, equation 2, and the official code. Batch norm in the cells has no parameters.

    Example:
        >>> supernet = DartsSupernet(channels=4, layers=3)
        >>> supernet(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 10])
        >>> [tuple(alpha.shape) for alpha in supernet.arch_parameters()[:4]]
        [(2, 8), (3, 8), (4, 8), (5, 8)]
    """

    def __init__(self, channels: int, layers: int, num_classes: int = 10) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        sites = cell_sites(channels, layers)
        self.reductions = [site.reduction for site in sites]
        self.stem = build_stem(channels)
        self.cells = nn.ModuleList(MixedCell(site) for site in sites)
        self.classifier = nn.Linear(4 * sites[-1].width, num_classes)
        self.normal_alphas, self.reduce_alphas = (
            nn.ParameterList(1e-3 * torch.randn(k + 2, len(PRIMITIVES)) for k in range(NODES)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, num_classes)."""
        check_sides(x)
        normal, reduce = (
            [alpha.softmax(-1)[:, : len(MIXED)].flatten() for alpha in alphas]
            for alphas in (self.normal_alphas, self.reduce_alphas)
        )
        s0 = s1 = self.stem(x)
        for cell, reduction in zip(self.cells, self.reductions, strict=True):
            s0, s1 = s1, cell(s0, s1, reduce if reduction else normal)
        return self.classifier(s1.mean((2, 3)))

    def arch_parameters(self) -> list[nn.Parameter]:
        """Architecture weights, 4 tensors (k + 2, 8) of the normal cell, then 4 of the reduction cell.

        Rows are the states that node k reads, columns the ``PRIMITIVES``; concatenated they are alpha, (28, 8).
        """
        return [*self.normal_alphas, *self.reduce_alphas]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        alphas = {id(alpha) for alpha in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in alphas]

    def genotype(self) -> Genotype:
        """The cells that the architecture weights favour at present: per node the two best edges.

        Source:
            official code; ``parse_alpha`` decodes.

        Example:
            >>> [len(node) for node in DartsSupernet(channels=4, layers=3).genotype().normal]
            [2, 2, 2, 2]
        """
        return parse_alpha(torch.cat([alpha.detach() for alpha in self.arch_parameters()]))
