"""FilterSketch beside the official loop, which puts in one filter at a time. Prints the ratio; checks equal sketches.

python -m pytest tests/benchmarks/test_filter_sketch_benchmarks.py -m benchmark -s
"""

import pytest
import torch

from lit_methods.backbones import resnet50
from lit_methods.filter_sketch.functional import sketch_conv_weight, sketch_width
from tests.benchmarks.side_by_side import side_by_side
from tests.filter_sketch_reference import official_sketch

pytestmark = pytest.mark.benchmark

RATE = 0.6


def test_filter_sketches_of_resnet50():
    """All at the rate 0.6: 32 convolutions, the largest 512 x 4608 to 307 rows."""
    weights = {
        name: parameter.detach()
        for name, parameter in resnet50(1000).named_parameters()
        if name.startswith("layer") and name.endswith(("conv1.weight", "conv2.weight"))
    }
    assert len(weights) == 32
    sizes = {name: sketch_width(len(weight), RATE) for name, weight in weights.items()}
    reference, ours = side_by_side(
        f"ResNet-50, {len(weights)} filter sketches at the rate {RATE}",
        lambda: {name: official_sketch(weight.flatten(1), sizes[name])[0] for name, weight in weights.items()},
        lambda: {
            name: sketch_conv_weight(weight, sizes[name], 0, normalize=None, tail="drop").flatten(1)
            for name, weight in weights.items()
        },
    )
    for name in weights:
        gram = reference[name].T @ reference[name]
        distance = torch.linalg.norm(ours[name].T @ ours[name] - gram) / torch.linalg.norm(gram)
        assert distance <= 1e-5, name
