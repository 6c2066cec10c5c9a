"""OwnPredictions: score what any detector left in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.ops import box_convert

from lit_methods.functional.options import CommandOptions
from lit_methods.functional.wider_files import read_prediction_folder


class OwnPredictions(CommandOptions):
    """Mixin: ``test --predictions DIR`` takes the boxes from the files of a detector instead of looking for faces.

    ``DIR`` has ``<event>/<image>.txt`` for each test image, as WIDER FACE's evaluation tool reads them, see
    :mod:`~lit_methods.functional.wider_files`; it may also hold a single folder that has them. Everything is read
    before the test begins. The network is not used, and neither are pictures.

    The class that takes it calls ``super().setup(stage)``, and :meth:`predictions_of` in ``test_step``.
    """

    trainer: Any
    predictions: str | None = None  # the folder
    _from_files: list[dict[str, Tensor]] | None = None  # in the test images, in their order

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--predictions`` of ``test``, beside the options of other mixins."""
        super().add_cli_arguments(parser, entry)
        if entry == "test":
            helps = "folder with a detector's files, whose boxes are scored instead of looking for faces"
            parser.add_argument("--predictions", type=str | None, default=None, help=helps)

    def take_options(self, predictions: str | None = None) -> None:
        """Score files from now on, or with ``None`` look for faces again.

        Args:
            predictions: folder of a detector.
        """
        self.predictions, self._from_files = predictions, None

    def setup(self, stage: str) -> None:
        """Read the files of all test images.

        Raises:
            FileNotFoundError: some are missing; names the first.
            ValueError: a line does not parse, there are several detectors, or the data do not tell their images.
        """
        super().setup(stage)  # type: ignore[misc]
        if stage != "test":
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if hasattr(data, "pictures_needed"):
            data.pictures_needed = self.predictions is None
        if self.predictions is None:
            return
        if not hasattr(data, "evaluation_names"):
            raise ValueError(
                f"predictions={self.predictions!r} can be scored on a datamodule that knows its images by name, such "
                f"as WIDERFaceDataModule, not on {type(data).__name__}"
            )
        found = read_prediction_folder(Path(self.predictions), names := data.evaluation_names("test"))
        self._from_files = []
        for name in names:
            boxes = box_convert(found[name][:, :4], "xywh", "xyxy")
            self._from_files.append({"boxes": boxes, "scores": found[name][:, 4]})

    def predictions_of(self, batch: dict[str, Any]) -> list[dict[str, Tensor]] | None:
        """What the files have of the images of a batch: ``boxes`` (n, 4) xyxy and ``scores`` (n,), float64.

        ``None`` where no files were given, so that one has to look for faces.

        Args:
            batch: of an evaluation, with ``index``.
        """
        if self._from_files is None:
            return None
        return [self._from_files[index] for index in batch["index"].tolist()]

    def summary(self) -> dict[str, float | str | list]:
        """Which files were scored, if any."""
        return {} if self.predictions is None else {"test/predictions": self.predictions}
