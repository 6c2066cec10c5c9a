"""RankedLists: what a test found for some queries, right and wrong ones framed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.report import RunReport
from lit_methods.functional.drawing import grid
from lit_methods.functional.framing import ranked_list
from lit_methods.functional.pictures import read_rgb
from lit_methods.functional.processes import gather_objects
from lit_methods.functional.ranking import JUNK

ROWS = ("features", "pid", "camid", "index", "query")
MOST = 512  # queries that are looked at
COLUMNS = ["query", "rank", "gallery", "pid", "camid", "distance", "right"]
HEIGHT, WIDTH = 112, 56  # of a picture in the lists: all of them are less than a megabyte


class RankedLists(Callback):
    """The nearest gallery pictures of some queries of a test, framed in green where they show the same person.

    Pictures of the same person by the same camera are left out, as by the evaluation. Half of the queries are those
    that were served worst, the others spread evenly over all; of more than 512, so many are looked at. Picture
    ``test/ranked_lists`` and a table of the same name, with the names of the files.

    Args:
        num_queries: how many.
        top: gallery pictures per query.

    Raises:
        ValueError: an argument below 1.

    Example:
        >>> RankedLists(num_queries=4, top=8).top
        8
    """

    def __init__(self, num_queries: int = 8, top: int = 10) -> None:
        if num_queries < 1 or top < 1:
            raise ValueError(f"num_queries={num_queries} and top={top} must be at least 1")
        self.num_queries, self.top = num_queries, top
        self._rows: dict[str, Tensor] | None = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put together what the processes have; all of them come here."""
        ranking: Any = getattr(pl_module, "test_ranking", None)
        if ranking is None:
            return
        mine = {name: torch.cat(rows).cpu() for name in ROWS if (rows := getattr(ranking, name))}
        found = [part for part in gather_objects(mine) if part]
        if trainer.is_global_zero and found:
            self._rows = _in_order({name: torch.cat([part[name] for part in found]) for name in ROWS})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        rows, self._rows = self._rows, None
        if rows is None or not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "query_files"):  # whose pictures they are, nobody knows
            return
        lists, table = self.lists(rows, data.query_files, data.gallery_files, pl_module)
        if lists:
            RunReport.of(trainer).picture(trainer, "test/ranked_lists", grid(lists, columns=1))
            RunReport.of(trainer).table_beside(trainer, "test/ranked_lists", COLUMNS, table)

    def lists(
        self, rows: dict[str, Tensor], query_files: Sequence[Path], gallery_files: Sequence[Path], module: Any
    ) -> tuple[list[np.ndarray], list[list[Any]]]:
        """One picture per chosen query, and the rows of the table."""
        query, gallery = rows["query"], ~rows["query"] & (rows["pid"] != JUNK)
        q = {name: values[query] for name, values in rows.items()}
        g = {name: values[gallery] for name, values in rows.items()}
        if not len(q["pid"]) or not len(g["pid"]):
            return [], []
        if (count := len(q["pid"])) > MOST:  # the whole table of distances was the evaluation's
            q = {name: values[torch.arange(MOST) * count // MOST] for name, values in q.items()}
        distances = module.test_ranking.distances(q["features"], g["features"])
        same = q["pid"][:, None] == g["pid"]
        distances = distances.masked_fill(same & (q["camid"][:, None] == g["camid"]), torch.inf)
        lists, table = [], []
        for row in _chosen(distances, same, self.num_queries):
            order = distances[row].argsort(stable=True)[: self.top]
            order = order[distances[row][order].isfinite()]
            right = same[row][order].tolist()
            source = query_files[int(q["index"][row])]
            files = [gallery_files[i] for i in g["index"][order].tolist()]
            found = distances[row][order].tolist()
            pictures = [np.asarray(read_rgb(path)) for path in files]
            texts = [f"{d:.2f}" for d in found]
            lists.append(ranked_list(np.asarray(read_rgb(source)), pictures, texts, right, HEIGHT, WIDTH))
            people = zip(g["pid"][order].tolist(), g["camid"][order].tolist(), strict=True)
            for rank, (path, (pid, camid), d, hit) in enumerate(zip(files, people, found, right, strict=True), 1):
                table.append([source.name, rank, path.name, pid, camid + 1, d, int(hit)])
        return lists, table


def _chosen(distances: Tensor, same: Tensor, number: int) -> list[int]:
    """Rows of queries with a match: half of them those whose first match comes last, the others spread evenly."""
    nearest = distances.masked_fill(~same, torch.inf).amin(1)  # match
    valid = nearest.isfinite().nonzero().flatten()
    before = (distances[valid] < nearest[valid, None]).sum(1)
    worst = valid[before.argsort(descending=True, stable=True)][: number // 2].tolist()
    others = [row for row in valid.tolist() if row not in worst]
    count = min(number - len(worst), len(others))
    return [*worst, *(others[i * len(others) // count] for i in range(count))]


def _in_order(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries and gallery by their index, each once: as if one process had seen them."""
    key = 2 * rows["index"] + rows["query"]
    order = key.argsort(stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    return {name: values[order[first]] for name, values in rows.items()}
