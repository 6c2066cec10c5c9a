"""FilterSketch as its official code computes it: one filter at a time, an SVD whenever the buffer is full."""

import torch


def official_sketch(a, size):
    """Sketch (size, m) of the rows of ``a`` (n, m) in their own dtype, rows used, and what each shrink subtracted.

    Written for reading, as a second opinion. The rows that a shrink leaves have the signs of the SVD. Beyond the
    official code, which stops there: singular values that a matrix narrower than its sketch lacks count as 0.
    """
    half, filled, deltas = size // 2, 0, []
    sketch = a.new_zeros(size, a.shape[1])
    for i, row in enumerate(a):
        if filled == size:
            if len(a) - i < half:
                return sketch, i, deltas
            _, s, vh = torch.linalg.svd(sketch, full_matrices=False)
            energy = torch.cat([s**2, s.new_zeros(size - len(s))])
            delta = energy[half]
            kept = min(half, len(s))
            sketch = torch.zeros_like(sketch)
            sketch[:kept] = (energy[:kept] - delta).clamp(min=0).sqrt()[:, None] * vh[:kept]
            deltas.append(delta.item())
            filled = half
        sketch[filled] = row
        filled += 1
    return sketch, len(a), deltas
