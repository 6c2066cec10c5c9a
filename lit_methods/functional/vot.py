"""VOT's evaluation with resets: overlaps of a run, and the overlap to expect of a sequence of some length (EAO).

A run writes one code per frame: 1 where the tracker was started, 9 where it gave a box, 2 where that box missed the
target altogether, 0 in the frames after that until it is started again, five frames after the failure.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_methods.functional.polygon_overlap import vot_overlap
from lit_methods.functional.regions import rectangle_corners

SKIPPED, INIT, FAILURE, TRACKED = 0, 1, 2, 9
RESTART = 5  # frames from a failure to the next start
VOT_RANGES = {"VOT2018": (100, 356), "VOT2019": (46, 291)}  # shortest and longest sequence that EAO is a mean over


@torch.no_grad()
def vot_overlaps(
    preds_xywh: Tensor, state: Tensor, polygons: Tensor, bounds: Sequence[float] | Tensor, burn_in: int = 0
) -> Tensor:
    """Overlap with the annotation in each frame of a run on one sequence.

    Args:
        preds_xywh: (n, 4) x, y, w, h in pixels, any real type and device; finite where ``state`` is 9.
        state: (n,) whole numbers: 9 tracked, 1 started, 2 failure, 0 skipped.
        polygons: (n, 8), the annotation.
        bounds: (W, H), which cut the regions: the image's size for accuracy, one less each for EAO.
        burn_in: frames from each start, it included, that count as unknown: 10 for accuracy, 0 for EAO.

    Returns:
        (n,) float64 on the device of ``preds_xywh`` (on the CPU for Apple's GPUs); NaN where there is no overlap: at
        codes other than 9, in burn-in, and where the annotation is not finite.

    Raises:
        ValueError: shapes that do not fit, an unknown code, a tracked box that is not finite, or ``burn_in`` below 0.

    Source:
        The VOT toolkit of the official code; the predicted rectangle is the polygon (x, y), (x + w, y),
        (x + w, y + h), (x, y + h).

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(3, 1)
        >>> polygon = torch.tensor([[0.0, 0, 9, 0, 9, 9, 0, 9]]).repeat(3, 1)
        >>> vot_overlaps(box, torch.tensor([1, 9, 2]), polygon, bounds=(20, 20))
        tensor([nan, 1., nan], dtype=torch.float64)
    """
    check_run(preds_xywh, state, polygons)
    if burn_in < 0:
        raise ValueError(f"burn_in={burn_in} must be 0 or more frames; VOT's accuracy leaves out 10")
    preds = preds_xywh.cpu() if preds_xywh.device.type == "mps" else preds_xywh
    state = state.to(preds.device)
    counts = state == TRACKED
    started = (state == INIT).nonzero()
    young = (started + torch.arange(burn_in, device=preds.device)).flatten()
    counts[young[young < len(state)]] = False
    frames = counts.nonzero().squeeze(1)
    overlaps = torch.full((len(state),), torch.nan, dtype=torch.float64, device=preds.device)
    overlaps[frames] = vot_overlap(rectangle_corners(preds[frames].double()), polygons.to(preds.device)[frames], bounds)
    return overlaps


def fragment_sums(overlaps: Tensor, state: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """What one sequence adds to the curve of expected overlaps: sums over its fragments, and how many there are.

    Args:
        overlaps: (n,) float64, without burn-in; NaN counts as 0.
        state: (n,) codes.
        length: of the curve.

    Returns:
        (length,) float64, sums of the mean overlap in frames 1 to i of a fragment; (length,) int64, fragments that
        reach frame i. One that ends in a failure reaches each, with 0 after its end.

    Source:
        The VOT toolkit of the official code for all frames (tag "all"). Ours: each fragment has weight 1, also one of
        m frames whose next start would be the frame after the last, which the official code weighs by m / (m + 1);
        and NaN counts as 0 in a sequence without a failure, too, where it would poison the rest of the curve.

    Example:
        >>> fragment_sums(torch.tensor([torch.nan, 0.5, 1.0]).double(), torch.tensor([1, 9, 9]), 4)
        (tensor([0.0000, 0.5000, 0.7500, 0.0000], dtype=torch.float64), tensor([1, 1, 1, 0]))
    """
    n = len(overlaps)
    failures = (state == FAILURE).nonzero().squeeze(1).tolist()
    starts = [0, *(frame + RESTART for frame in failures if frame + RESTART <= n)]
    overlaps = overlaps.double().nan_to_num(nan=0.0)
    sums = overlaps.new_zeros(length)
    counts = torch.zeros(length, dtype=torch.int64, device=overlaps.device)
    frames = torch.arange(1, length, device=overlaps.device)
    for i, start in enumerate(starts):
        if i + 1 < len(starts):
            part = overlaps[start : starts[i + 1] + 1][:length]
            part = pad(part, (0, length - len(part)))
        else:
            part = overlaps[start:][:length]
        sums[1 : len(part)] += part[1:].cumsum(0) / frames[: max(0, len(part) - 1)]
        counts[: len(part)] += 1
    return sums, counts


def expected_overlap_curve(overlaps: Sequence[Tensor], states: Sequence[Tensor]) -> Tensor:
    """Overlap to expect of a sequence, against its length.

    Args:
        overlaps: (n_i,) of each sequence, from :func:`vot_overlaps` without burn-in.
        states: (n_i,) codes of each.

    Returns:
        (longest,) float64; entry i is the mean over fragments that reach frame i of their mean overlap in frames 1 to
        i, entry 0 is 1.

    Raises:
        ValueError: no sequence, or not as many overlaps as codes.

    Source:
        See :func:`fragment_sums`.

    Example:
        >>> run = torch.tensor([torch.nan, 0.5, 1.0]).double()
        >>> expected_overlap_curve([run, run[:2]], [torch.tensor([1, 9, 9]), torch.tensor([1, 9])])
        tensor([1.0000, 0.5000, 0.7500], dtype=torch.float64)
    """
    sizes = [len(part) for part in overlaps]
    if not sizes or sizes != [len(part) for part in states]:
        raise ValueError(
            f"overlaps and states must have the same sequences, at least one, of the same lengths; got {sizes} and "
            f"{[len(part) for part in states]}"
        )
    parts = [fragment_sums(*run, max(sizes)) for run in zip(overlaps, states, strict=True)]
    sums, counts = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
    return mean_of_fragments(sums, counts)


def mean_of_fragments(sums: Tensor, counts: Tensor) -> Tensor:
    """The curve of :func:`expected_overlap_curve` from what sequences add to it, summed.

    Args:
        sums: (length,) float64.
        counts: (length,) int64.

    Returns:
        (length,) float64; entry 0 is 1, and NaN stands where no fragment reaches.

    Example:
        >>> mean_of_fragments(torch.tensor([0.0, 1.0]), torch.tensor([2, 2]))
        tensor([1.0000, 0.5000])
    """
    curve = sums / counts
    curve[:1] = 1
    return curve


def expected_average_overlap(curve: Tensor, dataset: str = "VOT2018") -> Tensor:
    """EAO: the mean of the curve over the lengths that are usual in a dataset.

    Args:
        curve: of :func:`expected_overlap_curve`, at least up to the longest usual length where a sequence is so long.
        dataset: ``"VOT2018"``, lengths 100 to 356, or ``"VOT2019"``, 46 to 291.

    Returns:
        0-d float64; NaN where no sequence has the shortest of these lengths.

    Raises:
        ValueError: an unknown dataset.

    Source:
        The VOT toolkit of the official code: entries low - 1 to high - 1.

    Example:
        >>> expected_average_overlap(torch.full((50,), 0.25), "VOT2019")
        tensor(0.2500)
    """
    low, high = vot_range(dataset)
    return curve[low - 1 : high].mean()


def vot_range(dataset: str) -> tuple[int, int]:
    """Shortest and longest of the usual lengths of a dataset's sequences.

    Args:
        dataset: ``"VOT2018"`` or ``"VOT2019"``.

    Returns:
        Two numbers of frames.

    Raises:
        ValueError: an unknown dataset.

    Example:
        >>> vot_range("VOT2019")
        (46, 291)
    """
    if dataset not in VOT_RANGES:
        raise ValueError(f"dataset must be one of {', '.join(map(repr, VOT_RANGES))}, got {dataset!r}")
    return VOT_RANGES[dataset]


def check_run(preds_xywh: Tensor, state: Tensor, polygons: Tensor) -> None:
    """Raise ValueError where boxes, codes and annotation of a run do not fit.

    Args:
        preds_xywh: see :func:`vot_overlaps`, here and below.
        state: (n,).
        polygons: (n, 8).

    Raises:
        ValueError: they do not fit, and why.

    Example:
        >>> check_run(torch.zeros(1, 4), torch.tensor([1]), torch.zeros(1, 8))
    """
    if state.ndim != 1 or not len(state):
        raise ValueError(f"state must be (n,), a code for each of at least one frame, got {tuple(state.shape)}")
    for name, part, width in (("preds_xywh", preds_xywh, 4), ("polygons", polygons, 8)):
        if part.shape != (len(state), width):
            raise ValueError(
                f"{name} must be ({len(state)}, {width}), a row for each code in state, got {tuple(part.shape)}"
            )
    known = torch.tensor([SKIPPED, INIT, FAILURE, TRACKED], device=state.device)
    if not (fits := torch.isin(state, known)).all():
        raise ValueError(
            f"state={state[~fits][0].item()} in frame {int((~fits).nonzero()[0])} (from 0) is no code; use 9 for "
            "tracked, 1 for started, 2 for a failure and 0 for skipped frames"
        )
    faulty = (state == TRACKED) & ~preds_xywh.isfinite().all(1).to(state.device)
    if faulty.any():
        raise ValueError(
            f"preds_xywh has NaN or infinity in {int(faulty.sum())} tracked frames, first in frame "
            f"{int(faulty.nonzero()[0])} (from 0); a tracker gives four finite numbers wherever state is 9"
        )
