"""How one image changes under an attack: a film of at most so many frames, however long the attack takes."""

from torch import Tensor

from lit_methods.ppba.eight_bits import levels

MOST_FRAMES = 48


class Film:
    """Frames of one image, evenly spaced over the iterations.

    When there are too many, every second one is dropped and twice as many iterations are left out from then on.

    Attributes:
        frames: number of the iteration and image ``(C, H, W)`` uint8 of each.

    Example:
        >>> import torch
        >>> film = Film()
        >>> for step in range(100):
        ...     film.show(step, torch.zeros(3, 2, 2))
        >>> film.end(99, torch.zeros(3, 2, 2))
        >>> [step for step, _ in film.frames][-4:], len(film.frames)
        ([88, 92, 96, 99], 26)
    """

    def __init__(self) -> None:
        self.frames: list[tuple[int, Tensor]] = []
        self._every = 1

    def wants(self, step: int) -> bool:
        """Whether this iteration is shown."""
        return step % self._every == 0

    def show(self, step: int, image: Tensor) -> None:
        """Add an image ``(C, H, W)`` in [0, 1] if its iteration is wanted."""
        if self.wants(step):
            self._add(step, image)
        if len(self.frames) > MOST_FRAMES:
            self._every *= 2
            self.frames = [frame for frame in self.frames if self.wants(frame[0])]

    def end(self, step: int, image: Tensor) -> None:
        """Add the last image, whose iteration is shown in any case."""
        if self.frames and self.frames[-1][0] == step:
            self.frames.pop()
        self._add(step, image)

    def _add(self, step: int, image: Tensor) -> None:
        self.frames.append((step, levels(image.detach().cpu())))
