"""Small pictures that say whose they are, in folders of identities, for tests of face data."""

import numpy as np
import torch
from PIL import Image


def fill(root, people, size=(4, 4), folder="train"):
    """Write pictures: ``people`` is identity to their number. Colours say who and which, blue is on the right alone."""
    for person, (name, count) in enumerate(people.items()):
        for number in range(1, count + 1):
            pixels = np.zeros((size[1], size[0], 3), np.uint8)
            pixels[..., :2] = 20 * person % 240, 20 * number % 240
            pixels[:, size[0] // 2 :, 2] = 255
            path = root / folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


def who(images):
    """Persons and numbers of uint8 pictures that :func:`fill` wrote, ``(B, 2)``."""
    return images[:, :2, 0, 0].long() // 20


def mirrored(images):
    """Which of them are mirrored, ``(B,)`` bool."""
    left, right = (images[:, 2, 0, column] for column in (0, -1))
    assert torch.equal(left == 255, right == 0)
    return left == 255
