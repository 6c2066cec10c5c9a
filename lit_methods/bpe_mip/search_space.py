"""Which networks there are to search among: the cells of DARTS, and recipes to train them by.

An architecture comes as a ``Genotype`` (what is built and stored) or as *sample28* (what searchers count with): 28
numbers, one per edge in the order of ``EDGES``, 7 = no edge.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self

import numpy as np
import torch

from lit_methods.bpe_mip.edges import CELLS, EDGES, NODE_EDGES, NODES, NONE, PRIMITIVES, Array, as_float64, as_sample
from lit_methods.bpe_mip.genotype_text import FORM, genotype_dicts
from lit_methods.bpe_mip.recipe import (
    BPE1,
    BPE2,
    DARTS_DEFAULT,
    FULL,
    PRESETS,
    Recipe,
    named_recipe,
    tied_lr,
)
from lit_methods.bpe_mip.slimming import slim_by_probability, slim_masks, slim_with_masks
from lit_methods.functional.suggestions import nearest

__all__ = [
    "BPE1",
    "BPE2",
    "DARTS_DEFAULT",
    "EDGES",
    "FULL",
    "NODE_EDGES",
    "PRESETS",
    "PRIMITIVES",
    "Genotype",
    "Recipe",
    "genotype_from_sample28",
    "named_recipe",
    "parse_alpha",
    "random_genotype",
    "read_genotypes",
    "sample28_from_genotype",
    "slim_by_probability",
    "slim_masks",
    "slim_with_masks",
    "tied_lr",
]

Edge = tuple[str, int]
CellEdges = tuple[tuple[Edge, ...], ...]


@dataclass(frozen=True)
class Genotype:
    """An architecture: the edges of its normal cell and of its reduction cell.

    Two genotypes are equal if their edges are, in the same order; the order matters only for printing, and ``key()``
    does not depend on it. Lists are accepted and become tuples.

    Args:
        normal: four nodes, each 0 to 5 pairs of an operation of ``PRIMITIVES`` and the state that it reads, which is
            below the node's own state. A node without edges puts out zeros.
        reduce: as ``normal``, for the cell that halves the size.

    Raises:
        ValueError: it is not of this form.

    Example:
        >>> cell = [[["sep_conv_3x3", 0]], [["skip_connect", 2]], [], []]
        >>> Genotype(cell, cell).normal
        ((('sep_conv_3x3', 0),), (('skip_connect', 2),), (), ())
    """

    normal: CellEdges
    reduce: CellEdges

    def __post_init__(self) -> None:
        for name in CELLS:
            nodes = getattr(self, name)
            if not isinstance(nodes, list | tuple) or len(nodes) != NODES:
                raise ValueError(f"genotype has {name}={brief(nodes)}, which is not a list of 4 nodes; {FORM}")
            object.__setattr__(self, name, tuple(_node(name, k, node) for k, node in enumerate(nodes)))

    def to_dict(self) -> dict[str, list[list[list[Any]]]]:
        """The form for JSON and checkpoints: lists of nodes, which are lists of ``[operation, source]``.

        Example:
            >>> Genotype([[["skip_connect", 0]], [], [], []], [[], [], [], []]).to_dict()["normal"]
            [[['skip_connect', 0]], [], [], []]
        """
        return {name: [[list(edge) for edge in node] for node in getattr(self, name)] for name in CELLS}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """A genotype from its form for JSON.

        Args:
            d: has ``normal`` and ``reduce``; other keys are ignored.

        Raises:
            ValueError: it has not, or they are no cells.

        Example:
            >>> Genotype.from_dict({"id": 3, "normal": [[], [], [], []], "reduce": [[], [], [], []]}).reduce
            ((), (), (), ())
        """
        if not isinstance(d, Mapping) or not {*CELLS} <= {*d}:
            raise ValueError(f"this is no genotype: {brief(d)}; {FORM}")
        return cls(d["normal"], d["reduce"])

    @classmethod
    def parse(cls, text: str) -> Self:
        """A genotype from text; nothing in it is run.

        Args:
            text: one genotype as JSON, or in the form of DARTS, ``Genotype(normal=[('skip_connect', 0), ...], ...)``
                with eight pairs per cell, two per node.

        Raises:
            ValueError: it is not exactly one genotype.

        Source:
            the official code evaluates the text as Python.

        Example:
            >>> pairs = [("skip_connect", 0), ("sep_conv_3x3", 1)] * 4
            >>> Genotype.parse(f"Genotype(normal={pairs}, normal_concat=range(2, 6), reduce={pairs})").normal[3]
            (('skip_connect', 0), ('sep_conv_3x3', 1))
        """
        found = genotype_dicts(text)
        if len(found) != 1:
            raise ValueError(f"there are {len(found)} genotypes in this text; give one, or use read_genotypes")
        return cls.from_dict(found[0])

    def key(self) -> str:
        """Text that is the same for the same network, whatever the order of the edges.

        Example:
            >>> Genotype([[["skip_connect", 0]], [], [], []], [[], [], [], []]).key()
            '2777777777777777777777777777'
        """
        return "".join(map(str, sample28_from_genotype(self)))


def _node(cell: str, k: int, node: Any) -> tuple[Edge, ...]:
    where = f"node {k} of the cell {cell!r}"
    if not isinstance(node, list | tuple):
        raise ValueError(f"{where} is {brief(node)}, not a list of pairs; {FORM}")
    edges = tuple(_edge(where, k, edge) for edge in node)
    sources = [source for _, source in edges]
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise ValueError(f"{where} reads state {twice[0]} twice; give each source one operation")
    return edges


def _edge(where: str, k: int, edge: Any) -> Edge:
    if not isinstance(edge, list | tuple) or len(edge) != 2 or not isinstance(edge[0], str):
        raise ValueError(f"{where} has {brief(edge)}, which is not an operation and a source; {FORM}")
    name, source = edge
    if name == "none":
        raise ValueError(f"{where} has the operation 'none' on state {brief(source)}; leave the edge out")
    if name not in PRIMITIVES:
        known = PRIMITIVES[:NONE]
        raise ValueError(f"{where} has an operation {brief(name)}{nearest(name, known)}; there are {', '.join(known)}")
    try:
        state = -1 if isinstance(source, bool) else operator.index(source)
    except TypeError:
        state = -1
    if not 0 <= state < k + 2:
        raise ValueError(f"{where} reads the state {brief(source)}; it may read the whole numbers 0 to {k + 1}")
    return name, state


def read_genotypes(path_or_text: str | Path) -> list[Genotype]:
    """All genotypes of a file or text.

    Args:
        path_or_text: a path, or the text itself: JSON with one genotype, a list of them, or either under the key
            ``genotype``; or one or several ``Genotype(...)`` in the form of DARTS.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is in it is not of these forms.

    Example:
        >>> empty = '{"normal": [[], [], [], []], "reduce": [[], [], [], []]}'
        >>> len(read_genotypes(f"[{empty}, {empty}]"))
        2
    """
    text, where = str(path_or_text), ""
    if isinstance(path_or_text, Path) or not (text.lstrip().startswith(("{", "[")) or "Genotype(" in text):
        where = f"{text!r}, "
        try:
            text = Path(text).read_text("utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {brief(text)} with genotypes; give a path, or JSON") from None
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{brief(text)} cannot be read as text: {error}; give a JSON file with genotypes"
            ) from error
    try:
        found = genotype_dicts(text)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    genotypes: list[Genotype] = []
    for number, item in enumerate(found):
        try:
            genotypes.append(Genotype.from_dict(item))
        except ValueError as error:
            raise ValueError(f"{where}genotype {number}: {error}") from error
    return genotypes


def genotype_from_sample28(sample: Array) -> Genotype:
    """The genotype of 28 numbers; the edges of a node come in rising order of their sources.

    Args:
        sample: (28,) operations 0..7, 7 = no edge.

    Raises:
        ValueError: a shape or number is wrong.

    Example:
        >>> genotype_from_sample28([3, 7] + [2] * 26).normal[:2]
        ((('sep_conv_3x3', 0),), (('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 2)))
    """
    operations = as_sample(sample).tolist()
    nodes = [
        tuple((PRIMITIVES[op], source) for source, op in enumerate(operations[edges]) if op != NONE)
        for edges in NODE_EDGES
    ]
    return Genotype(tuple(nodes[:NODES]), tuple(nodes[NODES:]))


def sample28_from_genotype(genotype: Genotype) -> list[int]:
    """28 numbers of a genotype, which lose only the order of its edges.

    Args:
        genotype: any.

    Example:
        >>> sample28_from_genotype(Genotype([[["skip_connect", 1]], [], [], []], [[], [], [], []]))[:3]
        [7, 2, 7]
    """
    found = {
        (cell, k, source): PRIMITIVES.index(name)
        for cell in CELLS
        for k, node in enumerate(getattr(genotype, cell))
        for name, source in node
    }
    return [found.get(edge, NONE) for edge in EDGES]


def parse_alpha(alpha: Array, k: int = 2) -> Genotype:
    """Decode scores: per edge the best operation, per node the best edges.

    Args:
        alpha: (28, 8) scores, rows in the order of ``EDGES``. The last column, that of "none", is ignored.
        k: so many edges per node are kept, or all where it has fewer.

    Returns:
        A genotype whose edges stand in falling order of their scores; of equal scores the lowest index comes first.

    Raises:
        ValueError: a shape is wrong, ``k`` is below 1, or a score is NaN.

    Source:
        DARTS and the official code, which compares raw scores or their softmax alike.

    Example:
        >>> parse_alpha(torch.arange(224.0).reshape(28, 8)).normal[1]
        (('dil_conv_5x5', 2), ('dil_conv_5x5', 1))
    """
    if k < 1:
        raise ValueError(f"k={k} edges per node; keep at least 1")
    scores = as_float64(alpha, (len(EDGES), len(PRIMITIVES)), "alpha")[:, :NONE]
    best, operations = scores.max(1), scores.argmax(1)
    nodes = [
        tuple(
            (PRIMITIVES[operations[edges][source]], int(source))
            for source in np.argsort(-best[edges], kind="stable")[:k]
        )
        for edges in NODE_EDGES
    ]
    return Genotype(tuple(nodes[:NODES]), tuple(nodes[NODES:]))


def random_genotype(generator: torch.Generator) -> Genotype:
    """A random genotype with two edges per node, as random search draws them.

    Args:
        generator: where the numbers come from: 28 x 8 of them, standard normal, float64.

    Source:
        official code; the same distribution from another generator.

    Example:
        >>> [len(node) for node in random_genotype(torch.Generator().manual_seed(0)).normal]
        [2, 2, 2, 2]
    """
    shape = len(EDGES), len(PRIMITIVES)
    return parse_alpha(torch.randn(shape, dtype=torch.float64, generator=generator, device=generator.device))
