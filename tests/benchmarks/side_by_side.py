"""Two ways to the same result, timed in turns; not a test."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def side_by_side(
    title: str, reference: Callable[[], Any], ours: Callable[[], Any], *, repeats: int = 5
) -> tuple[Any, Any]:
    """Run both in turns after one warm-up each, print medians, spread and ratio, and return both last results."""
    results: list[Any] = [reference(), ours()]
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for i, run in enumerate((reference, ours)):
            start = time.perf_counter()
            results[i] = run()
            times[i].append(1000 * (time.perf_counter() - start))
    slow, fast = (statistics.median(t) for t in times)
    spreads = [f"{min(t):.1f}-{max(t):.1f}" for t in times]
    print(
        f"\n{title}: reference {slow:.1f} ms ({spreads[0]}), ours {fast:.1f} ms ({spreads[1]}), "
        f"ratio {slow / fast:.1f}, {repeats} rounds"
    )
    return results[0], results[1]
