"""Frames of several sequences, decoded ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor

from lit_methods.functional.frames import read_frame
from lit_methods.functional.pictures import BadImageError

THREADS = 8  # that decode, at most


class FrameQueue:
    """Gives the frames of each sequence in turn, while threads decode the next ones.

    Args:
        sequences: of each the frames, paths of picture files or ``(3, H, W)`` tensors.
        ahead: how many frames of each are decoded before they are asked for, which bounds the memory.
        pin: whether they come in pinned memory, from where the host need not wait for their copy to a GPU.

    Raises:
        ValueError: ``ahead`` is below 1.

    Example:
        >>> import torch
        >>> with FrameQueue([[torch.zeros(3, 4, 5)] * 2]) as queue:
        ...     queue.next(0).shape
        torch.Size([3, 4, 5])
    """

    def __init__(self, sequences: Sequence[Sequence[str | Tensor]], ahead: int = 2, pin: bool = False) -> None:
        if ahead < 1:
            raise ValueError(f"ahead={ahead} must be at least 1 frame")
        self.sequences, self.ahead, self.pin = sequences, ahead, pin
        self._pool = ThreadPoolExecutor(min(THREADS, max(1, len(sequences)) * ahead))
        self._waiting: list[deque[Future[Tensor]]] = [deque() for _ in sequences]
        self._next = [0] * len(sequences)  # frame to hand out
        for number in range(len(sequences)):
            self.seek(number, 0)

    def seek(self, number: int, frame: int) -> None:
        """Go to a frame of a sequence.

        Args:
            number: of the sequence.
            frame: that comes next.
        """
        for future in self._waiting[number]:
            future.cancel()
        self._waiting[number].clear()
        self._next[number] = frame
        for ahead in range(self.ahead):
            self._begin(number, frame + ahead)

    def next(self, number: int) -> Tensor | BadImageError:
        """The next frame of a sequence, or why it cannot be read.

        Args:
            number: of the sequence.
        """
        future = self._waiting[number].popleft()
        self._begin(number, self._next[number] + self.ahead)
        self._next[number] += 1
        try:
            return future.result()
        except BadImageError as error:
            return error

    def _begin(self, number: int, frame: int) -> None:
        if frame < len(self.sequences[number]):
            self._waiting[number].append(self._pool.submit(self._read, self.sequences[number][frame]))

    def _read(self, frame: str | Tensor) -> Tensor:
        if not isinstance(frame, Tensor):
            frame = read_frame(frame)
        return frame.pin_memory() if self.pin and frame.device.type == "cpu" else frame

    def __enter__(self) -> FrameQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
