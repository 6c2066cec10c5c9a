"""Attacks as pictures."""

from collections.abc import Sequence

import numpy as np

from lit_methods.functional.drawing import caption, grid


def triplet(
    clean: np.ndarray, adversarial: np.ndarray, name: str, adversarial_name: str, queries: int, success: bool
) -> np.ndarray:
    """An image, what the attack changed, and both together, side by side.

    Args:
        clean: (H, W, 3) uint8 RGB.
        adversarial: of the same size.
        name: what the network sees in the first.
        adversarial_name: what it sees in the last.
        queries: spent.
        success: whether they differ as they should.

    Returns:
        (H', W', 3) uint8 RGB. The change is enlarged so that its largest value is half of the scale, on grey.

    Example:
        >>> image = np.zeros((32, 32, 3), np.uint8)
        >>> triplet(image, image + 1, "cat", "dog", 12, True).shape
        (184, 488, 3)
    """
    change = adversarial.astype(np.int16) - clean
    factor = 127 / max(1, int(np.abs(change).max()))
    after = f"{adversarial_name}, {queries} queries" if success else f"still {adversarial_name}"
    colour = "crimson" if success else "black"
    parts = [
        caption(clean, name),
        caption(_on_grey(factor * change), f"change x {factor:.0f}"),
        caption(adversarial, after, colour),
    ]
    return grid(parts, columns=3)


def growth(clean: np.ndarray, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A perturbation beside the image that it changes, frame by frame.

    Args:
        clean: (H, W, 3) uint8 RGB.
        frames: the image as it changes, of the same size.

    Returns:
        Frames (H', W', 3) uint8 RGB, the change on the left, enlarged as much in the first frame as in the last; small
        pictures are enlarged pixel by pixel.

    Example:
        >>> image = np.zeros((32, 32, 3), np.uint8)
        >>> [frame.shape for frame in growth(image, [image, image + 1])]
        [(160, 320, 3), (160, 320, 3)]
    """
    changes = [frame.astype(np.int16) - clean for frame in frames]
    factor = 127 / max(1, *(int(np.abs(change).max()) for change in changes))
    times = max(1, -(-160 // min(clean.shape[:2])))
    return [
        np.hstack([_on_grey(factor * change), frame]).repeat(times, 0).repeat(times, 1)
        for change, frame in zip(changes, frames, strict=True)
    ]


def _on_grey(change: np.ndarray) -> np.ndarray:
    return np.clip(128 + change, 0, 255).astype(np.uint8)
