"""The stand-alone network of a genotype, which BPE trains for a few epochs and the full recipe to the end."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_methods.bpe_mip.cells import CellSite, build_inputs, build_op, build_stem, cell_sites, check_sides
from lit_methods.bpe_mip.quick_layers import quicken
from lit_methods.bpe_mip.search_space import CellEdges, Genotype


class GenotypeCell(nn.Module):
    """Four nodes, each the sum of its edges; their maps, one after the other, are the output.

    Args:
        nodes: per node, pairs of an operation and the state that it reads; a node without pairs is zero.
        site: where the cell stands.

    Example:
        >>> nodes = ((("skip_connect", 0), ("max_pool_3x3", 1)), (("sep_conv_3x3", 2),), (), ())
        >>> cell = GenotypeCell(nodes, CellSite((6, 6), 4, reduction=True, reduction_prev=False))
        >>> cell(torch.zeros(2, 6, 8, 8), torch.zeros(2, 6, 8, 8)).shape
        torch.Size([2, 16, 4, 4])
    """

    def __init__(self, nodes: CellEdges, site: CellSite) -> None:
        super().__init__()
        self.preprocess0, self.preprocess1 = build_inputs(site)
        self.stride = 2 if site.reduction else 1
        self.ops = nn.ModuleList()
        self.edges: list[
            list[tuple[int, bool]]
        ] = []  # per node and operation: the state it reads, if it can be dropped
        for node in nodes:
            edges = []
            for name, source in node:
                op = build_op(name, site.width, self.stride if source < 2 else 1)
                self.ops.append(op)
                edges.append((source, not isinstance(op, nn.Identity)))
            self.edges.append(edges)
        self.dropped = sum(dropped for edges in self.edges for _, dropped in edges)

    def forward(self, s0: Tensor, s1: Tensor, masks: Iterator[Tensor] | None = None) -> Tensor:
        """The outputs of the two cells before, the elder first, to (N, 4 * width, H, W).

        ``masks`` gives one factor per sample, (N, 1, 1, 1), for each of the ``dropped`` edges.
        """
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        ops = iter(self.ops)
        for edges in self.edges:
            node: Tensor | None = None
            for source, dropped in edges:
                term = next(ops)(states[source])
                if masks is not None and dropped:
                    mask = next(masks)
                    node = term * mask if node is None else torch.addcmul(node, term, mask)
                else:
                    node = term if node is None else node + term
            if node is None:
                node = torch.zeros_like(states[1][:, :, :: self.stride, :: self.stride])
            states.append(node)
        return torch.cat(states[2:], 1)


class AuxiliaryHead(nn.Module):
    """A second classifier on the maps behind the second reduction.

    Args:
        source: channels of these maps.
        num_classes: outputs.

    Source:
        Official code, ``AuxiliaryHeadCIFAR``. Its first ReLU works in place, so that with 3 layers, where the head
        reads the last cell, the classifier there gets maps behind it; here nothing works in place.

    Example:
        >>> AuxiliaryHead(8, 10)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 10])
    """

    def __init__(self, source: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(source, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
            *(nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU()),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, source, H, W) to logits; 7x7 and 8x8 maps are averaged over 5x5 windows, others over 2x2 parts."""
        side = x.shape[-1]
        if x.shape[-2] == side and side in (7, 8):
            x = F.avg_pool2d(x.relu(), 5, stride=side - 5)
        else:
            x = F.adaptive_avg_pool2d(x.relu(), 2)
        return self.classifier(self.features(x).flatten(1))


class DartsCellNetwork(nn.Module):
    """A stem and a row of cells of one genotype, two of them reductions.

    Args:
        genotype: of the cells.
        channels: of a node in the first cells; they double at each reduction.
        layers: cells, at least 3; reductions are number ``layers // 3`` and ``2 * layers // 3``, counted from 0.
        num_classes: outputs.
        image_size: side of the images, a multiple of 4. Others fit too, as long as they can be halved twice.
        auxiliary: add a second classifier behind the second reduction; it works in training mode alone.
        drop_path_prob: chance that a sample loses an edge in training mode, from 0 to below 1; edges that hand on their
            input as it is stay. An attribute of this name may be set between epochs; a tensor on the network's device
            will do, so that a captured graph reads the current one.

    Raises:
        ValueError: an argument is out of range; in a pass, images whose sides are no multiples of 4.

    Source:
        Official code, ``NetworkCIFAR``. Differences: drop path works on every device and not in place, its draws for
        all edges are made at once; the auxiliary head takes maps of other sizes than 7 and 8, and works not in place.

    Example:
        >>> node = (("sep_conv_3x3", 0), ("skip_connect", 1))
        >>> network = DartsCellNetwork(Genotype([node] * 4, [node] * 4), channels=4, layers=6, image_size=16)
        >>> logits, auxiliary = network(torch.zeros(2, 3, 16, 16))
        >>> logits.shape, auxiliary
        (torch.Size([2, 10]), None)
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int,
        layers: int,
        num_classes: int = 10,
        image_size: int = 32,
        auxiliary: bool = False,
        drop_path_prob: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size={image_size} cannot be halved twice; give a multiple of 4")
        if not 0 <= drop_path_prob < 1:
            raise ValueError(f"drop_path_prob={drop_path_prob} must be in [0, 1); what is left is divided by the rest")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1")
        sites = cell_sites(channels, layers)
        self.drop_path_prob: float | Tensor = drop_path_prob
        self.stem = build_stem(channels)
        cells = [GenotypeCell(genotype.reduce if site.reduction else genotype.normal, site) for site in sites]
        self.cells = nn.ModuleList(cells)
        self.dropped = sum(cell.dropped for cell in cells)
        self.auxiliary_at = 2 * layers // 3
        self.auxiliary_head = AuxiliaryHead(4 * sites[self.auxiliary_at].width, num_classes) if auxiliary else None
        self.classifier = nn.Linear(4 * sites[-1].width, num_classes)
        quicken(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(N, 3, H, W) to logits (N, num_classes) and the auxiliary ones, None in eval mode or without the head."""
        check_sides(x)
        auxiliary = None
        s0 = s1 = self.stem(x)
        masks = self._masks(s0)
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, masks)
            if i == self.auxiliary_at and self.auxiliary_head is not None and self.training:
                auxiliary = self.auxiliary_head(s1)
        return self.classifier(self._pooled(s1)), auxiliary

    def _pooled(self, maps: Tensor) -> Tensor:
        """Means of the channels; the same numbers either way, but gradients in the layout of the maps."""
        if self.training and maps.is_contiguous(memory_format=torch.channels_last):
            return maps.permute(0, 2, 3, 1).mean((1, 2))
        return maps.mean((2, 3))

    def _masks(self, maps: Tensor) -> Iterator[Tensor] | None:
        """0 or 1 / keep per edge and sample, in the type of the maps, which autocast may have changed."""
        prob = self.drop_path_prob
        if not self.training or (not isinstance(prob, Tensor) and prob <= 0):
            return None
        keep = 1 - prob
        drawn = torch.rand(self.dropped, len(maps), 1, 1, 1, device=maps.device)
        return iter(((drawn < keep) / keep).to(maps.dtype).unbind())
