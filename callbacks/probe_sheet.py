"""ProbeSheet: whom a test took some probes for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.report import RunReport
from lit_methods.ddl.evaluation import Probes
from lit_methods.functional.drawing import grid
from lit_methods.functional.framing import PLAIN, RIGHT, WRONG, framed, labelled
from lit_methods.functional.identification import nearest_entries
from lit_methods.functional.processes import gather_objects

COLUMNS = ["probe", "group", "nearest", "similarity", "right"]
SIDE = 72  # of a face on the sheet, pixels
ACROSS = 4  # probes beside each other


class ProbeSheet(Callback):
    """Probes of a test beside the gallery face that is most similar to each, framed in green where it is the person.

    Under the faces are the group of the probe and the cosine. Of each group as many are shown, half of them mistakes,
    where there are so many, the others spread evenly. Picture ``test/probes`` and a table of the same name with the
    names of the pictures, of the first set that has a gallery; without one there is nothing.

    Args:
        per_group: probes of each group.

    Raises:
        ValueError: ``per_group`` is below 1.

    Example:
        >>> ProbeSheet(per_group=4).per_group
        4
    """

    def __init__(self, per_group: int = 12) -> None:
        if per_group < 1:
            raise ValueError(f"per_group={per_group} must be at least 1")
        self.per_group = per_group
        self._rows: list[Tensor] = []

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put together what the processes have; all of them come here."""
        probes = _probes(pl_module)
        if probes is None:
            return
        found = [part for part in gather_objects([column.cpu() for column in probes.rank1.table()]) if part]
        if trainer.is_global_zero and found:
            rows = [torch.cat(columns) for columns in zip(*found, strict=True)]
            order = rows[-1].argsort(stable=True)  # that of the file, however many processes there are
            self._rows = [column[order] for column in rows]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        rows, self._rows = self._rows, []
        probes = _probes(pl_module)
        data: Any = getattr(trainer, "datamodule", None)
        if not rows or probes is None or not hasattr(data, "evaluation_sets"):  # whose pictures they are, nobody knows
            return
        faces = next(one for one in data.evaluation_sets("test") if one.name == probes.name)
        cells, table = self.sheet(rows, faces)
        if cells:
            RunReport.of(trainer).picture(trainer, "test/probes", grid(cells, columns=2 * ACROSS))
            RunReport.of(trainer).table_beside(trainer, "test/probes", COLUMNS, table)

    def sheet(self, rows: list[Tensor], faces: Any) -> tuple[list[np.ndarray], list[list[Any]]]:
        """Two faces for each chosen probe, and the rows of the table.

        Args:
            rows: embeddings, labels, groups and indices, as ``Rank1Identification`` keeps them.
            faces: the set, with ``groups``, ``images`` and ``sources`` of an index.
        """
        embeddings, labels, group, index = rows
        gallery = (group == -1).nonzero().flatten()
        gallery = gallery[index[gallery].argsort(stable=True)]  # of equally near ones the first, as the figure has it
        cells: list[np.ndarray] = []
        table: list[list[Any]] = []
        if not len(gallery):
            return cells, table
        for number, name in enumerate(faces.groups):
            probes = (group == number).nonzero().flatten()
            if not len(probes):  # a limit on batches left them out
                continue
            place, similarity = nearest_entries(embeddings[gallery], embeddings[probes])
            nearest = gallery[place]
            right = labels[nearest] == labels[probes]
            for i in _chosen(right, self.per_group):
                both = torch.stack([probes[i], nearest[i]])
                pictures = faces.images(index[both].numpy()).permute(0, 2, 3, 1).numpy()
                colour = RIGHT if right[i] else WRONG
                cells.append(labelled(framed(pictures[0], PLAIN, SIDE, SIDE), name))
                cells.append(labelled(framed(pictures[1], colour, SIDE, SIDE), f"{float(similarity[i]):.2f}"))
                named = [faces.sources(row)[0] for row in index[both].tolist()]
                table.append([named[0], name, named[1], float(similarity[i]), int(right[i])])
        return cells, table


def _probes(module: Any) -> Probes | None:
    figures = getattr(module, "figures", {}).get("test")
    return None if figures is None else figures.part(Probes)


def _chosen(right: Tensor, number: int) -> list[int]:
    """Half of them mistakes, as far as there are any, the others spread evenly over all that is left."""
    wrong = (~right).nonzero().flatten().tolist()
    chosen = wrong[:: -(-len(wrong) // max(1, number // 2)) or 1]
    others = [i for i in range(len(right)) if i not in set(chosen)]
    count = min(number - len(chosen), len(others))
    return sorted([*chosen, *(others[i * len(others) // count] for i in range(count))])
