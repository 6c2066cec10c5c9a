"""GroundingResults: what a test on sentences leaves: all of them in a table, and where box and mask disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.grounding_pictures import GroundingCase, grounding_case, overlaps_text, show_groundings
from callbacks.report import RunReport
from lit_methods.functional.processes import gather_objects
from lit_methods.mcn.agreement import agreement, picture_box

RIGHT = 0.5  # overlap above which a box or a mask counts as right
SIDE = 320  # longest side of a picture on the sheet, pixels
ANSWERS = ("boxes", "scores", "masks", "box_iou", "mask_iou")  # what a test step gives
TRUTH = ("image", "box", "mask", "size", "image_id", "ref_id", "sentence", "index")  # of a batch
COLUMNS = ["index", "image_id", "ref_id", "sentence", "box_iou", "mask_iou", "score", "agreement"]


class SentenceRow(NamedTuple):
    """A sentence of the test: where it stands in the split, and what became of it."""

    position: int
    image_id: int
    ref_id: int
    sentence: str
    box_iou: float
    mask_iou: float
    score: float | str
    agreement: float

    @property
    def right(self) -> str:
        """Which of the two is right, ``"box"`` or ``"mask"``; an empty text where both are, or none."""
        box, mask = self.box_iou > RIGHT, self.mask_iou > RIGHT
        return "" if box == mask else "box" if box else "mask"

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands among those that disagree: the widest apart first, then in the order of the split."""
        return -round(abs(self.box_iou - self.mask_iou), 9), self.position


class GroundingResults(Callback):
    """Tables of a test on sentences, and a viewer of those on which box and mask disagree.

    - table ``test_grounding``: every sentence, in the order of the split: its picture and ref, the overlaps of box and
      mask with the truth, the score of the box, and the agreement, which is the overlap of the box with the extent of
      the mask and needs no truth.
    - table ``test_disagreements``: those where exactly one of both is right, its overlap above 0.5, the widest apart
      first. They are the ones that the inconsistency error counts.
    - pictures ``test/disagreements``: the first of them, with the truth. Without any there is neither.

    ``test/disagreements`` of the summary is their number.

    Args:
        num_cases: pictures of the viewer.

    Raises:
        ValueError: ``num_cases`` is below 1; in a test: a batch lacks something.

    Example:
        >>> GroundingResults(num_cases=4).summary()
        {}
    """

    def __init__(self, num_cases: int = 16) -> None:
        if num_cases < 1:
            raise ValueError(f"num_cases={num_cases} must be at least 1; leave GroundingResults out for none")
        self.num_cases = num_cases
        self.rows: list[SentenceRow] = []
        self._cases: list[tuple[SentenceRow, GroundingCase]] = []
        self._summary: dict[str, float | str | list] = {}

    def summary(self) -> dict[str, float | str | list]:
        """The figure of the last test."""
        return dict(self._summary)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test of its own."""
        self.rows, self._cases, self._summary = [], [], {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep the rows of a batch, and the pictures of those that disagree most so far.

        Raises:
            ValueError: the batch does not say whose sentences these are.
        """
        if not isinstance(outputs, Mapping) or not set(ANSWERS) <= outputs.keys():
            return
        if absent := [key for key in TRUTH if key not in batch]:
            raise ValueError(
                "GroundingResults lists every sentence of a test and draws some, as RefCOCODataModule gives them; the "
                f"batch lacks {', '.join(absent)}"
            )
        for number in range(len(batch["sentence"])):
            row = _row(batch, outputs, number)
            self.rows.append(row)
            full = len(self._cases) == self.num_cases
            if row.right and not (full and self._cases[-1][0].place < row.place):
                figures = overlaps_text(row.box_iou, row.mask_iou)
                answer = outputs["boxes"][number], outputs["masks"][number]
                self._cases.append((row, grounding_case(batch, number, *answer, figures, SIDE)))
                self._cases = _first(self._cases, self.num_cases)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put together what the processes have; all of them come here."""
        parts = gather_objects((self.rows, self._cases))
        rows = {row.position: row for mine, _ in parts for row in mine}
        self.rows = [rows[position] for position in sorted(rows)]  # however many processes there are
        self._cases = _first([case for _, mine in parts for case in mine], self.num_cases)
        if rows:
            self._summary = {"test/disagreements": sum(bool(row.right) for row in self.rows)}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the tables and the pictures."""
        rows, cases = self.rows, self._cases
        self.rows, self._cases = [], []
        if not rows:
            return
        # other keys than those of pictures: W&B shows one kind of thing under a key
        report, apart = RunReport.of(trainer), sorted((row for row in rows if row.right), key=lambda row: row.place)
        report.table(trainer, "test_grounding", COLUMNS, rows)
        if apart:
            table = [[*row, row.right] for row in apart]
            report.table(trainer, "test_disagreements", [*COLUMNS, "right"], table)
            show_groundings(trainer, "test/disagreements", [case for _, case in cases])


def _row(batch: Mapping[str, Any], outputs: Mapping[str, Any], number: int) -> SentenceRow:
    height, width = (int(n) for n in batch["size"][number])
    box = picture_box(outputs["boxes"][number], height, width, int(batch["image"].shape[-1]))
    score = float(outputs["scores"][number])
    return SentenceRow(
        position=int(batch["index"][number]),
        image_id=int(batch["image_id"][number]),
        ref_id=int(batch["ref_id"][number]),
        sentence=str(batch["sentence"][number]),
        box_iou=_or_none(outputs["box_iou"][number]),
        mask_iou=_or_none(outputs["mask_iou"][number]),
        score=score if score == score else "",
        agreement=agreement(box, outputs["masks"][number]),
    )


def _or_none(iou: Any) -> float:
    """No overlap where it is not a number."""
    value = float(iou)
    return value if value == value else 0.0


def _first(cases: list[tuple[SentenceRow, GroundingCase]], number: int) -> list[tuple[SentenceRow, GroundingCase]]:
    return sorted(cases, key=lambda case: case[0].place)[:number]
