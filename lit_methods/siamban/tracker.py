"""SiamBANTracker: follows targets from their first boxes, one sequence or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lit_methods.functional.modes import evaluating
from lit_methods.functional.tracking_crops import context_size, crop_patches
from lit_methods.siamban.functional import decode_ltrb, penalize, point_grid

TRACKER_CONSTANTS: dict[str, dict[str, float]] = {
    "vot2018": {"penalty_k": 0.08513642556896711, "window_influence": 0.4632532824922313, "lr": 0.44418184746462425},
    "vot2019": {"penalty_k": 0.0012159181005195463, "window_influence": 0.334450048565355, "lr": 0.46386814967815493},
    "otb100": {"penalty_k": 0.020530504470126613, "window_influence": 0.3850733326567302, "lr": 0.4730770315643308},
    "fallback": {"penalty_k": 0.14, "window_influence": 0.45, "lr": 0.30},
}
"""The published constants; for LaSOT, UAV123 and NFS there are none, and those of OTB100 are ours to use."""

LEAST_SIDE = 10.0  # pixels of a box

Frame = Tensor | np.ndarray


class TrackingNet(Protocol):
    """What the tracker asks of a network, such as ``SiamBANNet``.

    One that does not name its sizes has those of the paper: 25 points, 8 pixels apart, and crops of 127 and 255.
    """

    stride: int
    size: int
    template_size: int
    search_size: int

    def template(self, z: Tensor) -> list[Tensor]:
        """Once per sequence, from crops (S, 3, template_size, template_size); rows belong to sequences."""

    def track(self, template: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """Per frame, from crops (S, 3, search_size, search_size) to (S, 2, n, n) and (S, 4, n, n)."""


@dataclass(frozen=True)
class TrackerState:
    """All that a tracker knows of S sequences; the network keeps nothing.

    Args:
        centre: ``(S, 2)`` x, y, pixels of the frame.
        size: ``(S, 2)`` width, height.
        fill: ``(S, 3)`` the colour outside of the frames.
        image_wh: ``(S, 2)`` width and height of the frames.
        template: of the network, rows of sequences.
        shapes: height and width of the frames, for the host.
        single: whether it is one sequence that was not given as a list.
    """

    centre: Tensor
    size: Tensor
    fill: Tensor
    image_wh: Tensor
    template: list[Tensor]
    shapes: list[tuple[int, int]]
    single: bool = False

    def select(self, rows: Sequence[int]) -> TrackerState:
        """The state of some of the sequences.

        Args:
            rows: their numbers.
        """
        index = torch.tensor(rows, device=self.centre.device, dtype=torch.int64)
        tensors = {name: getattr(self, name)[index] for name in ("centre", "size", "fill", "image_wh")}
        return TrackerState(
            **tensors,
            template=[part[index] for part in self.template],
            shapes=[self.shapes[row] for row in rows],
            single=self.single,
        )

    @property
    def boxes_xywh(self) -> Tensor:
        """``(S, 4)``."""
        return torch.cat([self.centre - self.size / 2, self.size], 1)


class SiamBANTracker:
    """Follow targets with a trained network.

    Everything between the decoded frame and its box stays on the network's device, and nothing waits for it; the
    template goes through the network once. Several sequences make one batch, and each has the boxes that it would have
    alone, up to the rounding of a batch. The network is asked in eval mode and without gradients, and has its own mode
    again afterwards.

    Frames are BGR, 0 to 255: ``(3, H, W)`` tensors, or ``(H, W, 3)`` uint8 arrays as OpenCV gives them.

    Args:
        net: such as ``SiamBANNet``.
        penalty_k: of changes of size and shape: their product is punished by exp(-k (product - 1)).
        window_influence: part of the window, a Hann window over the search region, in the final score.
        lr: at which width and height follow, times penalty and score.

    Attributes:
        state: of the sequences, or ``None`` before ``init``; may be set to one that was kept.

    Raises:
        ValueError: an argument is out of range.

    Source:
        SiamBAN, arXiv 2003.06761, and its official tracker. The default constants are those published for OTB100.

    Example:
        >>> from lit_methods.siamban.model import SiamBANNet
        >>> net = SiamBANNet(18, width=4, channels=8, levels=[2], search_size=191).eval()
        >>> tracker = SiamBANTracker(net)
        >>> frame = torch.zeros(3, 60, 80, dtype=torch.uint8)
        >>> tracker.init(frame, [30, 20, 16, 12])
        >>> box, score = tracker.track(frame)
        >>> box.shape, score.shape
        (torch.Size([4]), torch.Size([]))
    """

    def __init__(
        self,
        net: TrackingNet,
        penalty_k: float = TRACKER_CONSTANTS["otb100"]["penalty_k"],
        window_influence: float = TRACKER_CONSTANTS["otb100"]["window_influence"],
        lr: float = TRACKER_CONSTANTS["otb100"]["lr"],
    ) -> None:
        if penalty_k < 0:
            raise ValueError(f"penalty_k={penalty_k} must not be negative")
        for name, value in {"window_influence": window_influence, "lr": lr}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1]")
        self.net, self.penalty_k, self.window_influence, self.lr = net, penalty_k, window_influence, lr
        self.template_size: int = getattr(net, "template_size", 127)
        self.search_size: int = getattr(net, "search_size", 255)
        self.state: TrackerState | None = None
        size = getattr(net, "size", 25)
        window = torch.hann_window(size, periodic=False, dtype=torch.float64)
        self._window = torch.outer(window, window).flatten()
        self._points = point_grid(getattr(net, "stride", 8), size, 0)

    @torch.no_grad()
    def init(self, image: Frame | Sequence[Frame], box_xywh: Any) -> None:
        """Begin with the first frame.

        Args:
            image: a frame, or a list of S frames of any sizes.
            box_xywh: four numbers, pixels; for a list of frames ``(S, 4)``.

        Raises:
            ValueError: a box is not four numbers, has no area or lies outside of its frame, or an image is no frame.
        """
        single = _is_one(image)
        images: Any = [image] if single else image
        device = self._device(images)
        frames = self._frames(images, device)
        exact = torch.float32 if device.type == "mps" else torch.float64
        boxes = torch.as_tensor(np.asarray(box_xywh, np.float64) if not isinstance(box_xywh, Tensor) else box_xywh)
        boxes = boxes.detach().cpu().double()
        boxes = boxes[None] if single else boxes
        if boxes.shape != (len(frames), 4):
            raise ValueError(
                f"box_xywh must be four numbers for each of {len(frames)} frames, got shape {tuple(boxes.shape)}"
            )
        shapes = [(frame.shape[1], frame.shape[2]) for frame in frames]
        for number, (box, (height, width)) in enumerate(zip(boxes.tolist(), shapes, strict=True)):
            check_first_box(box, width, height, "" if single else f" of sequence {number}")
        wh = boxes[:, 2:].to(device, exact)
        centre = boxes[:, :2].to(device, exact) + (wh - 1) / 2
        fill = torch.stack([frame.to(exact).mean((1, 2)) for frame in frames])
        side = context_size(wh).round().clamp(min=1)
        crops = crop_patches(frames, centre, side, self.template_size, fill)
        image_wh = torch.tensor([(width, height) for height, width in shapes], dtype=exact, device=device)
        with self._asking():
            template = self.net.template(self._laid_out(crops))
        self.state = TrackerState(centre, wh, fill, image_wh, template, shapes, single)

    @torch.no_grad()
    def track(self, image: Frame | Sequence[Frame]) -> tuple[Tensor, Tensor]:
        """Find the targets in the next frame.

        Args:
            image: of the kind that ``init`` was given.

        Returns:
            Boxes x, y, w, h in pixels, ``(4,)``, and how sure the network is, 0-d from 0 to 1; for a list of frames
            ``(S, 4)`` and ``(S,)``. They are on the network's device. A score of NaN: the network's answer is not
            finite, and the box is that of the frame before.

        Raises:
            ValueError: before ``init``; another number of frames, or a frame of another size than the first.
        """
        state = self.state
        if state is None:
            raise ValueError("track() before init(): a tracker needs the first frame and its box")
        images: Any = [image] if _is_one(image) else image
        frames = self._frames(images, state.centre.device)
        self._check_sizes(frames, state)
        scale = self.template_size / context_size(state.size)  # pixels of the crop in one of the frame
        side = (self.search_size / scale).round()
        crops = crop_patches(frames, state.centre, side, self.search_size, state.fill)
        with self._asking():
            cls, loc = self.net.track(state.template, self._laid_out(crops))
        offset, wh, score, rate = self.choose(cls, loc, state.size * scale[:, None])
        rate = rate[:, None] * self.lr
        centre = (state.centre + offset / scale[:, None]).clamp(min=0).minimum(state.image_wh)
        size = state.size * (1 - rate) + wh / scale[:, None] * rate
        size = size.minimum(state.image_wh).clamp(min=LEAST_SIDE)
        self.state = replace(state, centre=centre, size=size)
        boxes = self.state.boxes_xywh
        return (boxes[0], score[0]) if state.single else (boxes, score)

    def choose(self, cls: Tensor, loc: Tensor, prev_wh: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best point of each response map.

        Args:
            cls: ``(S, 2, n, n)`` logits.
            loc: ``(S, 4, n, n)`` distances.
            prev_wh: ``(S, 2)`` the size before, pixels of the search crop.

        Returns:
            Its box's offset from the middle of the crop ``(S, 2)``, width and height ``(S, 2)``, score ``(S,)``, and
            score times penalty ``(S,)``, in the type of ``prev_wh``. Where the network overflows the box stays as it
            is, and the score is NaN.
        """
        score = cls.to(prev_wh.dtype).softmax(1)[:, 1].flatten(1)
        if self._points.device != prev_wh.device:
            self._points, self._window = self._points.to(prev_wh), self._window.to(prev_wh)
        boxes = decode_ltrb(loc.to(prev_wh.dtype), self._points)
        pscore, penalty = penalize(score, boxes, prev_wh, self.penalty_k, self._window, self.window_influence)
        best = pscore.argmax(1, keepdim=True)
        low, high = boxes.gather(1, best[:, :, None].expand(-1, -1, 4))[:, 0].split(2, 1)
        score, penalty = score.gather(1, best)[:, 0], penalty.gather(1, best)[:, 0]
        offset, wh, rate = (low + high) / 2, high - low, score * penalty
        finite = torch.cat([offset, wh, rate[:, None]], 1).isfinite().all(1)
        offset, wh = torch.where(finite[:, None], offset, 0.0), torch.where(finite[:, None], wh, prev_wh)
        return offset, wh, torch.where(finite, score, torch.nan), torch.where(finite, rate, 0.0)

    def _device(self, images: Sequence[Any]) -> torch.device:
        """The network's; of one without parameters, that of the frames."""
        parameters = self.net.parameters() if isinstance(self.net, nn.Module) else iter(())
        places = (*islice(parameters, 1), *(image for image in images if isinstance(image, Tensor)))
        return places[0].device if places else torch.device("cpu")

    @property
    def on_cuda(self) -> bool:
        """Whether the network is on a GPU that frames are best copied to from pinned memory."""
        return self._device(()).type == "cuda"

    def _asking(self) -> AbstractContextManager[None]:
        """Eval mode; where it is set already nothing has to be put back, which saves time for every frame."""
        if isinstance(self.net, nn.Module) and any(part.training for part in self.net.modules()):
            return evaluating(self.net)
        return nullcontext()

    def _laid_out(self, crops: Tensor) -> Tensor:
        """In the network's type, and as convolutions are fastest: on a CPU channels last was no quicker."""
        if isinstance(self.net, nn.Module) and (first := next(self.net.parameters(), None)) is not None:
            crops = crops.to(first.dtype)
        return crops if crops.device.type == "cpu" else crops.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _frames(images: Sequence[Frame], device: torch.device) -> list[Tensor]:
        frames = []
        for image in images:
            if isinstance(image, np.ndarray):
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                    raise ValueError(f"a frame as an array must be (H, W, 3) uint8, got {image.dtype} {image.shape}")
                image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            if not isinstance(image, Tensor):
                raise ValueError(
                    f"a frame must be a tensor (3, H, W) or an array (H, W, 3), got {type(image).__name__}"
                )
            if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
                raise ValueError(f"a frame must be (3, H, W), BGR, got {tuple(image.shape)}")
            if image.dtype == torch.bool or image.is_complex():
                raise ValueError(f"a frame must hold numbers from 0 to 255, got {image.dtype}")
            frames.append(image.to(device, non_blocking=True))
        if not frames:
            raise ValueError("there are no frames to track in")
        return frames

    @staticmethod
    def _check_sizes(frames: Sequence[Tensor], state: TrackerState) -> None:
        if len(frames) != len(state.shapes):
            raise ValueError(f"{len(frames)} frames for {len(state.shapes)} sequences: give one for each")
        for number, (frame, (height, width)) in enumerate(zip(frames, state.shapes, strict=True)):
            if frame.shape[1:] != (height, width):
                of = "" if state.single else f" of sequence {number}"
                raise ValueError(
                    f"a frame{of} is {frame.shape[2]} x {frame.shape[1]} pixels, the first one was {width} x {height}: "
                    "the frames of a sequence must have one size"
                )


def _is_one(image: Any) -> bool:
    return isinstance(image, Tensor | np.ndarray) and image.ndim == 3


def check_first_box(box_xywh: Sequence[float], width: int, height: int, of: str = "") -> None:
    """Refuse a box that nothing can be tracked from.

    Args:
        box_xywh: four numbers, pixels.
        width: of the frame.
        height: of the frame.
        of: which box it is, for the message.

    Raises:
        ValueError: it is not finite, has no area, or lies outside of the frame.

    Example:
        >>> check_first_box([90, 5, 20, 20], 80, 60)
        Traceback (most recent call last):
        ...
        ValueError: the first box x, y, w, h = 90, 5, 20, 20 lies outside of the frame of 80 x 60 pixels
    """
    numbers = ", ".join(f"{value:g}" for value in box_xywh)
    x, y, w, h = box_xywh
    if not np.isfinite(box_xywh).all():
        raise ValueError(f"the first box{of} x, y, w, h = {numbers} must be finite numbers")
    if not (w > 0 and h > 0):
        raise ValueError(f"the first box{of} x, y, w, h = {numbers} has no area: width and height must be positive")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise ValueError(
            f"the first box{of} x, y, w, h = {numbers} lies outside of the frame of {width} x {height} pixels"
        )
