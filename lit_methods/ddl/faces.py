"""OwnFaces: what a network of embeddings says of the user's own pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_methods.ddl.own_pairs import OwnPair, own_pairs
from lit_methods.functional.drawing import caption, grid
from lit_methods.functional.framing import PLAIN, RIGHT, WRONG, framed, labelled, ranked_list
from lit_methods.functional.modes import evaluating
from lit_methods.functional.pictures import read_rgb
from lit_methods.inference import prepare_inputs, stretch

BATCH_SIZE = 32  # of the user's pictures
SIDE = 112  # of a face in a drawn row, pixels


class OwnFaces:
    """Mixin: ``predict`` embeds pictures, or scores the pairs of a file.

    ``predict_step`` gives per picture ``embedding`` (D,), of unit length, and of the other pictures of the same
    ``predict`` the most similar one: ``nearest``, its path, and ``similarity``, their cosine. With ``--pairs FILE`` it
    gives per line ``file``, ``other``, ``similarity``, where the file knows it ``truth``, and where there is a
    threshold ``verdict``, ``same`` or ``different`` both; ``faces`` is both pictures side by side.

    The threshold is ``--threshold``, a cosine, or the one that the last validation found on its first set of pairs.
    Pictures are aligned faces; they are stretched to ``input_size``.

    Attributes:
        threshold: cosine from which two faces are said to be the same person, or ``None``.
    """

    hparams: Any
    device: Any
    threshold: float | None = None
    _limit: float | None = None  # of this prediction
    _folder: tuple[list[Path], Tensor]  # the pictures of this prediction and their embeddings

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--pairs`` and ``--threshold`` of ``predict``."""
        if entry == "predict":
            parser.add_argument("--pairs", type=str | None, default=None, help="file of pairs of pictures to be scored")
            parser.add_argument(
                "--threshold", type=float | None, default=None, help="cosine from which two faces are one person"
            )

    @staticmethod
    def view(image: Tensor, size: Sequence[int] | None) -> Tensor:
        """The whole picture at the network's height and width: alignment has cropped it already."""
        return stretch(image, size)

    def prepare_inputs(
        self, paths: Sequence[str | Path], pairs: str | None = None, threshold: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """The user's pictures as batches for ``predict_step``.

        Args:
            paths: readable picture files.
            pairs: file of pairs, as ``own_pairs`` takes it; all of its pictures have to be among ``paths``.
            threshold: cosine from -1 to 1; ``None`` is that of the checkpoint.

        Raises:
            FileNotFoundError: ``pairs`` or one of its pictures is not there.
            ValueError: a line of it does not parse, a picture is not among ``paths`` or cannot be read, or
                ``threshold`` is out of range.
        """
        if threshold is not None and not -1 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} must be a cosine, from -1 to 1")
        if threshold is not None and pairs is None:
            raise ValueError(f"threshold={threshold} is for pairs: give a file of them, or leave it out")
        self._limit = self.threshold if threshold is None else threshold
        files = [Path(path) for path in paths]
        found = None if pairs is None else own_pairs(pairs)  # at once: a generator would be too late
        known = {path.resolve() for path in files}
        for pair in found or ():
            if missing := [path for path in pair[:2] if path.resolve() not in known]:
                raise ValueError(
                    f"{str(missing[0])!r} of pairs={pairs!r} is not among the pictures of --input, or cannot be read; "
                    "give the folder that holds them all"
                )
        return self._batches(files, found)

    def _batches(self, paths: list[Path], pairs: list[OwnPair] | None) -> Iterator[dict[str, Any]]:
        wanted = paths if pairs is None else sorted({path for pair in pairs for path in (pair.first, pair.second)})
        with evaluating(self):  # type: ignore[arg-type]  # the Trainer asks for the first batch before it says so
            batches = prepare_inputs(wanted, self.hparams["input_size"], BATCH_SIZE, self.view)
            rows = torch.cat([self.embed(batch["image"].to(self.device)) for batch in batches])  # type: ignore[attr-defined]
        if not (finite := rows.isfinite().all(1)).all():
            first = wanted[int((~finite).nonzero()[0])]
            raise ValueError(
                f"{int((~finite).sum())} embeddings are not finite, the first is that of {str(first)!r}: the training "
                "of this checkpoint has diverged, or half precision overflows"
            )
        if pairs is None:
            self._folder = paths, rows  # not in the batches: Lightning walks through all that is in them
            for chosen in torch.arange(len(paths)).split(BATCH_SIZE):
                yield {"chosen": chosen}
            return
        place = {path: row for row, path in enumerate(wanted)}
        for start in range(0, len(pairs), BATCH_SIZE):
            some = pairs[start : start + BATCH_SIZE]
            similarity = [rows[place[pair.first]] @ rows[place[pair.second]] for pair in some]
            yield {"pairs": some, "similarity": torch.stack(similarity)}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Per picture or pair, as the class says."""
        if "pairs" in batch:
            scored = zip(batch["pairs"], batch["similarity"].tolist(), strict=True)
            return [self._scored(pair, similarity) for pair, similarity in scored]
        if "image" in batch:  # pictures alone, as a Predictor gives them
            return [{"embedding": row} for row in self.embed(batch["image"]).cpu()]  # type: ignore[attr-defined]
        paths, rows = self._folder
        chosen = batch["chosen"].to(rows.device)
        similarities = rows[chosen] @ rows.T
        similarities[torch.arange(len(chosen), device=rows.device), chosen] = -torch.inf
        best, nearest = similarities.max(1)
        results: list[dict[str, Any]] = [{"embedding": row} for row in rows[chosen].cpu()]
        if len(rows) > 1:
            for result, similarity, row in zip(results, best.tolist(), nearest.tolist(), strict=True):
                result |= {"nearest": str(paths[row]), "similarity": similarity}
        return results

    def _scored(self, pair: OwnPair, similarity: float) -> dict[str, Any]:
        result = {"file": str(pair.first), "other": str(pair.second), "similarity": similarity}
        colour, text = PLAIN, f"{similarity:.2f}"
        if pair.same is not None:
            result["truth"] = "same" if pair.same else "different"
        if self._limit is not None:
            same = similarity > self._limit
            result["verdict"] = "same" if same else "different"
            colour, text = (RIGHT if same else WRONG), f"{text} {result['verdict']}"
        faces = [framed(np.asarray(read_rgb(path)), colour, SIDE, SIDE) for path in (pair.first, pair.second)]
        drawn = grid([labelled(faces[0], text), labelled(faces[1], "")], columns=2)
        return result | {"faces": torch.from_numpy(drawn).permute(2, 0, 1)}

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture, and beside it the most similar other one, where there are others.

        Args:
            image: (H, W, 3) uint8 RGB.
            prediction: one dict of ``predict_step``.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        if "nearest" not in prediction:
            return caption(image, "no other face")
        other = np.asarray(read_rgb(prediction["nearest"]))
        return ranked_list(image, [other], [f"{prediction['similarity']:.2f}"], height=SIDE, width=SIDE)
