"""The detector as graphs that leave Python, with and without suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lit_methods.asfd.anchors import STRIDES, decode, make_anchors
from lit_methods.asfd.detection import SMALLEST_SIDE, size_fault
from lit_methods.asfd.losses import face_probability
from lit_methods.contract import ExportGraph
from lit_methods.functional.options import CommandOptions

NOWHERE = (-(2.0**17), -(2.0**17), 64 - 2.0**17, 64 - 2.0**17)
EXAMPLE = (192, 160)  # height and width that a graph for all sizes is traced at


class DetectorGraph(nn.Module):
    """Images to boxes and face probabilities of all anchors, as ``ASFD.forward``.

    Args:
        normalize: images in [0, 1] to what the network is fed with.
        network: to classification and codes; its ``cls_weight`` is ``None`` in mode ``"logit"``.
        mode: ``"logit"`` or ``"cosine"``.
        scale: see ``face_probability``.

    Example:
        >>> from lit_methods.asfd.model import ASFDNet
        >>> boxes, scores = DetectorGraph(nn.Identity(), ASFDNet("d0", channels=8))(torch.zeros(1, 3, 128, 160))
        >>> boxes.shape, scores.shape
        (torch.Size([1, 1708, 4]), torch.Size([1, 1708]))
    """

    def __init__(
        self, normalize: nn.Module, network: nn.Module, mode: str = "logit", scale: float | None = None
    ) -> None:
        super().__init__()
        self.normalize, self.network, self.mode, self.scale = normalize, network, mode, scale

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1] to (B, A, 4) xyxy in pixels, and (B, A)."""
        cls, codes = self.network(self.normalize(image))
        anchors = _anchors(image.shape[2], image.shape[3], image.device)
        weight: Any = self.network.cls_weight
        return decode(codes, anchors), face_probability(cls, weight, scale=self.scale, mode=self.mode)


def _anchors(height: int, width: int, device: torch.device) -> Tensor:
    """Those of ``make_anchors``, side by side: it compares height and width, and a traced comparison is for ever.

    Sides are whole strides, since ONNX rounds quotients of negative numbers, by which it counts cells, towards zero.
    """
    levels = []
    for stride in STRIDES:
        rows, columns = ((side + stride - 1) // stride for side in (height, width))
        down = make_anchors(rows * stride, 1, strides=[stride], device=device)[:, None]
        along = make_anchors(1, columns * stride, strides=[stride], device=device)[None]
        x1, y1, x2, y2 = torch.broadcast_tensors(along[..., 0], down[..., 1], along[..., 2], down[..., 3])
        levels.append(torch.stack([x1, y1, x2, y2], -1).view(-1, 4))
    return torch.cat(levels)


class SuppressedGraph(nn.Module):
    """One image to its faces, as ``detect`` gives them.

    Args:
        detector: boxes (1, A, 4) and scores (1, A) of an image.
        score_threshold: scores above it count.
        pre_nms: at most so many boxes enter the suppression.
        nms_iou: a box is dropped where it overlaps a better one by more than that.
        max_boxes: rows that come out.

    Source:
        Section 3, "Test". Differs from ``detect`` where scores are equal: which of them is first is left to the
        runtime.

    Example:
        >>> class Boxes(nn.Module):
        ...     def forward(self, image):
        ...         boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
        ...         return boxes, torch.tensor([[0.5, 0.75, 0.001]])
        >>> detections, count = SuppressedGraph(Boxes(), max_boxes=2)(torch.zeros(1, 3, 128, 128))
        >>> detections.tolist(), count.tolist()
        ([[0.0, 0.0, 10.0, 9.0, 0.75], [0.0, 0.0, 0.0, 0.0, 0.0]], [1])
    """

    def __init__(
        self,
        detector: nn.Module,
        score_threshold: float = 0.01,
        pre_nms: int = 5000,
        nms_iou: float = 0.3,
        max_boxes: int = 750,
    ) -> None:
        super().__init__()
        self.detector, self.score_threshold, self.nms_iou = detector, score_threshold, nms_iou
        self.pre_nms, self.max_boxes = pre_nms, max_boxes

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W) in [0, 1] to (max_boxes, 5): x1, y1, x2, y2, score, best first, and after the last face zeros;
        and (1,) int64, how many faces there are."""
        boxes, scores = (part[0] for part in self.detector(image))
        # as many rows for every picture; what is no face is one and the same box far away, which suppresses itself
        nowhere = boxes.new_tensor(NOWHERE)
        boxes = torch.cat([boxes, nowhere.expand(self.pre_nms, 4)])
        scores = torch.cat([scores, scores.new_zeros(self.pre_nms)])
        face = (scores > self.score_threshold) & boxes.isfinite().all(1)
        best, order = scores.where(face, -1.0).topk(self.pre_nms)
        boxes = boxes[order].where(best[:, None] >= 0, nowhere)
        boxes = torch.cat([boxes, torch.stack([nowhere, 2 * nowhere])])  # the tracer takes it that two are kept
        best = torch.cat([best, best.new_full((2,), -1.0)])
        kept = torchvision.ops.nms(boxes, best, self.nms_iou)
        rows = torch.cat([boxes, best[:, None]], 1)[kept]
        rows = torch.cat([rows, rows.new_full((self.max_boxes, 5), -1.0)])[: self.max_boxes]
        real = rows[:, 4:] >= 0
        return rows.where(real, 0.0), real.sum(0)


def detector_graphs(
    normalize: nn.Module,
    network: nn.Module,
    *,
    mode: str = "logit",
    scale: float | None = None,
    image_size: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    **suppression: Any,
) -> dict[str, ExportGraph]:
    """The graphs of a detector: ``detector``, all anchors of a batch, and ``detector_nms``, the faces of one image.

    Args:
        normalize: see :class:`DetectorGraph`, as the next three.
        network: likewise.
        mode: likewise.
        scale: likewise.
        image_size: height and width of the pictures; ``None``: any, from 128 on.
        device: of the examples.
        suppression: the other arguments of :class:`SuppressedGraph`.

    Raises:
        ValueError: ``image_size`` is no height and width, or below 128.

    Example:
        >>> from lit_methods.asfd.model import ASFDNet
        >>> graphs = detector_graphs(nn.Identity(), ASFDNet("d0", channels=8), image_size=[128, 160])
        >>> {name: tuple(graph.inputs[0].shape) for name, graph in graphs.items()}
        {'detector': (2, 3, 128, 160), 'detector_nms': (1, 3, 128, 160)}
    """
    if image_size is not None:
        if len(image_size) != 2:
            raise ValueError(f"image_size={list(image_size)} must be two numbers, height and width")
        if fault := size_fault(image_size[0], image_size[1]):
            raise ValueError(f"image_size: a picture is {fault}")
    height, width = image_size or EXAMPLE
    image = torch.zeros(2, 3, height, width, device=device)
    axes = {0: torch.export.Dim("batch")}
    sides = {}
    if image_size is None:
        sides = {axis: torch.export.Dim(name, min=SMALLEST_SIDE) for axis, name in ((2, "height"), (3, "width"))}
    detector = DetectorGraph(normalize, network, mode, scale)
    suppressed = SuppressedGraph(detector, **suppression)
    return {
        "detector": ExportGraph(detector, (image,), {"image": axes | sides}, ("boxes", "scores")),
        "detector_nms": ExportGraph(
            suppressed, (image[:1],), {"image": sides}, ("detections", "count"), aligned=faces_in_order
        ),
    }


def faces_in_order(expected: Sequence[Tensor], got: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of ``detector_nms`` with the faces in the order of others, as far as they are the same faces.

    Scores that differ by rounding alone may change places between two programs.

    Args:
        expected: detections (max_boxes, 5) and their number.
        got: likewise.

    Example:
        >>> rows = torch.tensor([[0.0, 0, 9, 9, 0.5], [40.0, 0, 50, 9, 0.5]])
        >>> faces_in_order((rows, torch.tensor([2])), (rows.flip(0), torch.tensor([2])))[0].equal(rows)
        True
    """
    rows, *rest = got
    if rows.shape != expected[0].shape or not rows.isfinite().all():
        return list(got)
    _, order = linear_sum_assignment(torch.cdist(expected[0].double(), rows.double()).numpy())
    return [rows[torch.from_numpy(order)], *rest]


class OwnGraphs(CommandOptions):
    """Mixin: ``export`` of a detector, of pictures of any size or with ``--image_size HEIGHT WIDTH`` of one.

    The class that takes it has ``normalize``, ``model``, and the hyperparameters ``cls_mode``, ``scale`` and those of
    the suppression.
    """

    @classmethod
    def add_cli_arguments(cls, parser: Any, entry: str) -> None:
        """``--image_size`` of ``export``, beside the options of other mixins."""
        super().add_cli_arguments(parser, entry)
        if entry == "export":
            helps = "height and width of the pictures; by default any from 128 on"
            parser.add_argument("--image_size", type=int, nargs=2, default=None, help=helps)

    def export_graphs(self, image_size: Sequence[int] | None = None) -> dict[str, ExportGraph]:
        """Two graphs of RGB in [0, 1].

        ``detector``: images (B, 3, H, W) to ``boxes`` (B, A, 4), xyxy in pixels, and ``scores`` (B, A) of all anchors.
        ``detector_nms``: one image (1, 3, H, W) to ``detections`` (max_boxes, 5), x1, y1, x2, y2, score, best first and
        then zeros, and ``count`` (1,), how many they are.

        Args:
            image_size: H and W; ``None``: any from 128 on.

        Raises:
            ValueError: ``image_size`` is no height and width, or below 128.
        """
        module: Any = self
        names = ("score_threshold", "pre_nms", "nms_iou", "max_boxes")
        return detector_graphs(
            module.normalize,
            module.model,
            mode=module.hparams["cls_mode"],
            scale=module.hparams["scale"],
            image_size=image_size,
            device=module.device,
            **{name: module.hparams[name] for name in names},
        )
