"""ASFD's networks beside torchvision's detectors for each multiply-add, and images a second on a GPU.

python -m pytest tests/benchmarks/test_asfd_benchmarks.py -m benchmark -s
"""

import statistics
import time

import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn, ssdlite320_mobilenet_v3_large

from lit_methods.asfd.model import ASFD_SIZES, ASFDNet
from lit_methods.functional.complexity import count_macs
from lit_methods.functional.modes import evaluating

pytestmark = pytest.mark.benchmark
HEIGHT, WIDTH = 480, 640
ROUNDS = 9
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


class Raw(nn.Module):
    """Backbone and head of torchvision's detectors, without resizing in front and without boxes behind."""

    def __init__(self, detector):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, image):
        return self.head(list(self.backbone(image).values()))


def networks():
    """All with random weights; nothing is downloaded."""
    torch.manual_seed(0)
    options = {"weights": None, "weights_backbone": None}
    return {
        "asfd d0": ASFDNet("d0"),
        "ssdlite320": Raw(ssdlite320_mobilenet_v3_large(num_classes=2, **options)),
        "retinanet": Raw(retinanet_resnet50_fpn(num_classes=2, **options)),
    }


@pytest.mark.parametrize("layout", FORMATS)
def test_d0_beside_torchvision_s_detectors(layout):
    """Time of the one computing thread for a raw pass at 640 x 480, in turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    nets = {name: net.eval().to(memory_format=FORMATS[layout]) for name, net in networks().items()}
    image = torch.rand(1, 3, HEIGHT, WIDTH).contiguous(memory_format=FORMATS[layout])
    gmacs = {name: count_macs(net, (3, HEIGHT, WIDTH)) / 1e9 for name, net in nets.items()}
    times = {name: [] for name in nets}
    with torch.inference_mode():
        for turn in range(2 + ROUNDS):
            for name, net in nets.items():
                if name == "retinanet" and turn >= 5:  # twenty times slower
                    continue
                start = time.thread_time()
                net(image)
                if turn >= 2:
                    times[name].append(1000 * (time.thread_time() - start))
    torch.set_num_threads(threads)
    taken = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{WIDTH} x {HEIGHT}, {layout}, one thread, medians:")
    for name, values in times.items():
        rate = taken[name] / gmacs[name]
        ratio = rate / (taken["asfd d0"] / gmacs["asfd d0"])
        print(
            f"{name}: {taken[name]:.0f} ms ({min(values):.0f}-{max(values):.0f}), {gmacs[name]:.3f} GMAC, "
            f"{rate:.1f} ms per GMAC, {ratio:.2f} times D0's"
        )
    assert abs(gmacs["asfd d0"] - 0.775) < 5e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["eager", "graph"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("size", ASFD_SIZES)
def test_images_a_second_at_vga(size, half, way):
    """The papers say 120 and 320 for D0, one image at a time; the goal is 600. ``graph`` replays a CUDA graph."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    net = ASFDNet(size).to("cuda", torch.float16 if half else torch.float32, memory_format=torch.channels_last)
    words = []
    with evaluating(net):
        for batch in (1, 32):
            image = torch.rand(batch, 3, HEIGHT, WIDTH, device="cuda", dtype=next(net.parameters()).dtype)
            image = image.contiguous(memory_format=torch.channels_last)
            run = replayed(net, image) if way == "graph" else lambda net=net, image=image: net(image)
            repeats = 100 if batch == 1 else 10
            for _ in range(5):
                run()
            torch.cuda.synchronize()
            rates = []
            for _ in range(5):
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                torch.cuda.synchronize()
                rates.append(batch * repeats / (time.perf_counter() - start))
            words.append(f"batch {batch}: {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})")
    memory = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    kind = "float16" if half else "float32"
    print(f"\n{size}, {kind}, {way}: images a second, {', '.join(words)}; at most {memory:.1f} GiB")


def replayed(net, image):
    """A pass as a CUDA graph; its input stays the same."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            net(image)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(image)
    return graph.replay
