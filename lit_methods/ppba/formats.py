"""What goes over the wire to a service and back: pictures as bytes, and JSON as labels with scores."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lit_methods.ppba.eight_bits import levels
from lit_methods.ppba.functional import Pairs

Encoder = Callable[[np.ndarray], tuple[bytes, str]]  # (H, W, C) uint8 -> body, content type

_LISTS = ("labels", "predictions", "results", "outputs")  # names under which services put their list
_FLOOR = 1e-12  # a class that is not returned, before the logarithm


def pixels(images: Tensor) -> list[np.ndarray]:
    """Images as arrays of 8 bits.

    Args:
        images: (N, C, H, W) floating point, in [0, 1]; values outside are clipped.

    Returns:
        N arrays (H, W, C) uint8.

    Raises:
        ValueError: images of another shape or type, or with NaN or infinity.

    Example:
        >>> import torch
        >>> pixels(torch.full((1, 1, 1, 2), 0.2))[0].tolist()
        [[[51], [51]]]
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a floating point tensor (N, C, H, W) in [0, 1], got {got}")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity; they must lie in [0, 1]")
    return list(levels(images.detach().cpu()).permute(0, 2, 3, 1).numpy())


def _png(array: np.ndarray) -> tuple[bytes, str]:
    if array.shape[2] not in (1, 3):
        raise ValueError(
            f"images must have 1 or 3 channels, got {array.shape[2]}; for others give a function as encode"
        )
    file = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(file, "png")
    return file.getvalue(), "image/png"


def _json(array: np.ndarray) -> tuple[bytes, str]:
    image = base64.b64encode(_png(array)[0]).decode()
    return json.dumps({"image": image}).encode(), "application/json"


ENCODERS: dict[str, Encoder] = {"png": _png, "json": _json}


def default_parse(answer: Any) -> Pairs:
    """Labels and scores from the usual shapes of answers.

    ``[{"label": "cat", "score": 0.9}, ...]``, ``[["cat", 0.9], ...]``, ``{"cat": 0.9, "dog": 0.05}``, bare labels
    ``["cat", "dog"]`` (each scores 1), and any of these under ``labels``, ``predictions``, ``results`` or ``outputs``,
    with a list ``scores`` beside it or without. A score of ``null`` is NaN.

    Args:
        answer: the decoded JSON.

    Returns:
        (label, score) in the order of the answer.

    Raises:
        ValueError, KeyError, TypeError: any other shape; nothing is guessed.

    Example:
        >>> default_parse({"predictions": [{"label": "cat", "score": 0.9}]}), default_parse(["cat", "dog"])
        ([('cat', 0.9)], [('cat', 1.0), ('dog', 1.0)])
    """
    if isinstance(answer, dict):
        for name in _LISTS:
            if isinstance(inner := answer.get(name), list | dict):
                scores = answer.get("scores")
                return default_parse(list(zip(inner, scores, strict=True)) if isinstance(scores, list) else inner)
        if not answer:
            raise ValueError("an empty object")
        answer = [answer] if "label" in answer else list(answer.items())
    if not isinstance(answer, list):
        raise TypeError("neither a list nor an object")
    return [_pair(item) for item in answer]


def _pair(item: Any) -> tuple[str, float]:
    if isinstance(item, str):
        return item, 1.0
    label, score = (item["label"], item["score"]) if isinstance(item, dict) else item
    score = math.nan if score is None else score
    if not isinstance(label, str | int) or not isinstance(score, int | float) or isinstance(score, bool):
        raise TypeError("not a label with a number")  # a row of scores without labels, an error message, ...
    return str(label), float(score)


def log_scores(answer: Pairs | None, classes: Sequence[str]) -> list[float]:
    """What attacks take for the logits of some classes: the logarithms of their scores.

    Args:
        answer: (label, score) pairs, best first; ``None`` where there is none.
        classes: names.

    Returns:
        One number per class, not below log(1e-12), which stands for a class that is not returned; NaN without answer.

    Example:
        >>> log_scores([("cat", 1.0)], ["cat", "dog"])
        [0.0, -27.631021115928547]
    """
    if answer is None:
        return [math.nan] * len(classes)
    best = dict(reversed(answer))  # of a label that comes twice the better one
    return [math.log(max(best.get(name, _FLOOR), _FLOOR)) for name in classes]
