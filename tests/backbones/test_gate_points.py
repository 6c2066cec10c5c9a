"""Where NAD gates networks: the official networks' own figures, and what every table of gate points must keep to."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lit_methods.backbones import BACKBONES, build_backbone
from tests.nad_probes import MODES, fill, gate_logits, gates, probe_image

BLOCKS = [f"layer{stage}.{i}" for stage, blocks in enumerate((3, 4, 6, 3), start=1) for i in range(blocks)]
DENSE = ["pool0", "denseblock1", "transition1", "denseblock2", "transition2", "denseblock3", "transition3", "norm5"]
PAPER = {  # where the official code has its gates, first to last
    "vgg16": [f"features.{i}" for i in (1, 4, 6, 9, 11, 13, 16, 18, 20, 23, 25, 27)] + ["avgpool"],
    "resnet50": ["maxpool", *BLOCKS],
    "densenet121": [f"features.{name}" for name in DENSE],
    "darts": ["stem0", "stem1", *(f"cells.{i}" for i in range(14))],
}


def probe(arch, points, expected):
    """Logits (3, 1000) and, per gate, the activation behind it, with the gates of the three modes."""
    with torch.device("meta"):
        network = build_backbone(arch, 1000)
    fill(network)
    shift = float(expected["input_shift"])
    recorded = {}

    def gate_by(name, values):
        def hook(module, args, output):
            assert name not in recorded, f"{name} is called twice"
            out = output * values[:, :, None, None]
            recorded[name] = out.relu() if name == "features.norm5" else out  # its ReLU works in place, on out
            return out

        return hook

    for name, logits in zip(points, gate_logits(expected["gate_sizes"], shift), strict=True):
        network.get_submodule(name).register_forward_hook(gate_by(name, gates(logits)))
    with torch.no_grad():
        logits = network(probe_image(shift).expand(len(MODES), -1, -1, -1))
    return logits, [recorded[name] for name in points]


LARGE = ("vgg16", "resnet50", "densenet121")  # float64 at 224 pixels
SLOW = [pytest.param(arch, marks=pytest.mark.slow) for arch in LARGE]


@pytest.mark.parametrize("arch", [*SLOW, "darts"])
def test_gated_networks_say_what_the_official_ones_do(arch, vectors):
    expected = np.load(vectors / "nad" / f"arch_probe_{arch}.npz")
    logits, recorded = probe(arch, PAPER[arch], expected)
    assert logits.shape == (3, 1000)
    found = {
        "mean": [a.mean((1, 2, 3)) for a in recorded],
        "l2": [a.flatten(1).norm(dim=1) for a in recorded],
        "min": [a.flatten(1).amin(1) for a in recorded],
    }
    for row, mode in enumerate(MODES):
        official = torch.from_numpy(expected[f"logits_{mode}"])
        assert_close(logits[row], official, rtol=1e-9, atol=1e-9 * float(official.abs().max()))
        for what, values in found.items():
            official = torch.from_numpy(expected[f"gate_out_{what}_{mode}"])
            assert_close(torch.stack(values)[:, row], official, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch", PAPER)
def test_the_papers_networks_have_the_papers_points(arch):
    assert list(BACKBONES[arch].gates()) == PAPER[arch]


@pytest.mark.parametrize("arch", [arch for arch in BACKBONES if not arch.startswith("tiny")])
def test_every_point_is_one_map_that_nothing_overwrites(arch):
    points = BACKBONES[arch].gates()
    with torch.device("meta"):
        network = build_backbone(arch, 10).eval()
    behind = []

    def gate_by(name):
        def hook(module, args, output):
            behind.append((name, output * 1))
            return behind[-1][1]

        return hook

    for name in points:
        network.get_submodule(name).register_forward_hook(gate_by(name))
    network(torch.zeros(2, *BACKBONES[arch].input_size, device="meta"))
    assert [name for name, _ in behind] == list(points)  # each once, in forward order
    for name, maps in behind:
        assert maps.ndim == 4
        assert maps.shape[0] == 2
        filters = [network.get_submodule(conv).out_channels for conv in points[name]]
        assert set(filters) <= {maps.shape[1]}
        assert maps._version == (name == "features.norm5"), name  # torchvision's ReLU behind it works in place
