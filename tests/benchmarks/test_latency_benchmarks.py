"""What pruning at the published rates is worth in time: each recipe's network beside its dense one. Prints ratios.

Times are those of the one computing thread: on an idle machine the latency, on a busy one without the waiting.

python -m pytest tests/benchmarks/test_latency_benchmarks.py -m benchmark -s
"""

import statistics
import time

import pytest
import torch
import yaml

from lit_methods.backbones import Plan, prune_points
from lit_methods.classification import ImageClassifier
from lit_methods.cli.recipes import find_recipes
from lit_methods.filter_sketch.model import widths_at
from lit_methods.functional import count_macs, parse_rates
from lit_methods.functional.modes import evaluating
from lit_methods.hrank.functional import build_plan

pytestmark = pytest.mark.benchmark

RECIPES = {name: path for name, path in find_recipes().items() if name.startswith(("hrank_", "filter_sketch_"))}
ROUNDS = 15


def classifiers(recipe: str) -> tuple[ImageClassifier, ImageClassifier, tuple[int, int, int]]:
    """Dense and pruned, as the recipe builds them, for HRank with random filters kept; and the size of an image.

    Random choices overlap less from block to block than ranks do, so residual streams stay wider than in practice.
    """
    config = yaml.safe_load(RECIPES[recipe].read_text("utf-8"))
    (rates,) = (c["init_args"]["rates"] for c in config["trainer"]["callbacks"] if "rates" in c.get("init_args", {}))
    arch, imagenet = config["model"]["init_args"]["backbone"], "imagenet" in recipe
    torch.manual_seed(0)
    if recipe.startswith("hrank_"):
        scores = {point.conv: torch.rand(point.num_filters) for point in prune_points(arch)}
        plan: Plan = build_plan(arch, scores, parse_rates(rates))
    else:
        plan = widths_at(arch, parse_rates(rates))
    options = {"num_classes": 1000 if imagenet else 10, "mean": [0.5] * 3, "std": [0.25] * 3}
    dense, thin = (ImageClassifier(arch, plan=p, **options) for p in (None, plan.to_dict()))
    return dense, thin, (3, 224, 224) if imagenet else (3, 32, 32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_latency_of_the_published_rates(recipe):
    dense, thin, size = classifiers(recipe)
    macs = count_macs(dense.model, size) / count_macs(thin.model, size)
    assert macs > 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for batch in (1, 8):
        images = torch.rand(batch, *size)
        times: list[list[float]] = [[], []]
        with evaluating(dense), evaluating(thin):
            for turn in range(2 + ROUNDS):  # in turns, so that a busy machine is fair to both
                for network, taken in zip((dense, thin), times, strict=True):
                    start = time.thread_time()
                    network(images)
                    if turn >= 2:
                        taken.append(1000 * (time.thread_time() - start))
        ratios = [slow / fast for slow, fast in zip(*times, strict=True)]
        low, ratio, high = statistics.quantiles(ratios, n=4)
        slow, fast = map(statistics.median, times)
        print(
            f"\n{recipe}, batch {batch}: {slow:.1f} ms dense, {fast:.1f} ms pruned, ratio {ratio:.2f} "
            f"({low:.2f}-{high:.2f}, the middle half of {ROUNDS} rounds), "
            f"MACs ratio {macs:.2f}, share of it {ratio / macs:.2f}"
        )
    torch.set_num_threads(threads)
