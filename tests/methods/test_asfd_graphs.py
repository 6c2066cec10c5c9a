"""The detector's graphs: what they compute, and files of them at sizes that they were not traced at."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.testing import assert_close

from lit_methods.asfd.anchors import STRIDES, decode, make_anchors
from lit_methods.asfd.detection import detect
from lit_methods.asfd.functional import face_probability
from lit_methods.asfd.graphs import DetectorGraph, OwnGraphs, SuppressedGraph, detector_graphs
from lit_methods.asfd.model import ASFDNet
from lit_methods.asfd.pixels import Pixels
from lit_methods.exporting import export_module


class Brightness(nn.Module):
    """A network of no parameters: bright cells of the coarse levels are faces, somewhat moved."""

    cls_weight = None

    def forward(self, image):
        grey = image.mean(1, keepdim=True)
        cls, codes = [], []
        for stride in STRIDES:
            seen = F.avg_pool2d(grey, stride, ceil_mode=True).flatten(1)[..., None]
            face = 20 * (seen - 0.5) if stride > 16 else seen - 20
            cls.append(torch.cat([torch.zeros_like(face), face], 2))
            codes.append(torch.cat([seen, -seen, seen, seen], 2))
        return torch.cat(cls, 1), torch.cat(codes, 1)


class Detector(OwnGraphs, LightningModule):
    """What exports the graphs of a network."""

    def __init__(self, network, mode="logit", score_threshold=0.01, max_boxes=750, pre_nms=5000, nms_iou=0.3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "mode"])
        self.hparams["cls_mode"], self.hparams["scale"] = mode, None
        self.model, self.normalize = network, Pixels()


def padded(found, rows):
    return torch.cat([found, found.new_zeros(rows - len(found), 5)]), torch.tensor([len(found)])


@pytest.mark.parametrize("size", [(128, 128), (130, 277), (300, 140)])
@pytest.mark.parametrize("mode", ["logit", "cosine"])
def test_all_anchors_come_as_from_the_modules_own_forward(size, mode):
    network = ASFDNet("d0", channels=8, cls_mode=mode).eval()
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        boxes, scores = DetectorGraph(Pixels(), network, mode)(image)
        cls, codes = network(Pixels()(image))
        assert_close(boxes, decode(codes, make_anchors(*size)), rtol=0, atol=0)
        assert_close(scores, face_probability(cls, network.cls_weight, mode=mode), rtol=0, atol=0)


@pytest.mark.parametrize(("pre_nms", "max_boxes", "nms_iou"), [(5000, 750, 0.3), (40, 6, 0.5), (3, 750, 0.3)])
def test_suppressed_faces_are_those_of_detect(pre_nms, max_boxes, nms_iou):
    options = {"score_threshold": 0.3, "pre_nms": pre_nms, "max_boxes": max_boxes, "nms_iou": nms_iou}
    detector = DetectorGraph(nn.Identity(), Brightness())
    image = torch.rand(1, 3, 300, 410)
    (expected,) = detect(detector, image, **options)
    assert len(expected) >= min(3, pre_nms) or pre_nms == 3
    for ours, theirs in zip(SuppressedGraph(detector, **options)(image), padded(expected, max_boxes), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("faces", [0, 1, 2])
def test_few_faces_leave_rows_of_zeros(faces):
    boxes = torch.tensor([[[0.0, 0, 20, 20], [40, 40, 60, 60], [0, 0, torch.nan, 9]]])
    scores = torch.tensor([[0.9, 0.8, torch.nan]]) * torch.tensor([faces > 0, faces > 1, True])

    class Fixed(nn.Module):
        def forward(self, image):
            return boxes, scores

    rows, count = SuppressedGraph(Fixed(), max_boxes=4)(torch.zeros(1, 3, 128, 128))
    assert rows.shape == (4, 5)
    assert count.tolist() == [faces]
    assert rows[:faces, 4].tolist() == scores[0, :faces].tolist()
    assert not rows[faces:].any()


def test_the_modules_own_numbers_are_in_the_graph():
    numbers = {"score_threshold": 0.2, "pre_nms": 70, "nms_iou": 0.4, "max_boxes": 9}
    graph = Detector(Brightness(), **numbers).export_graphs([128, 150])["detector_nms"]
    assert {name: getattr(graph.module, name) for name in numbers} == numbers
    assert graph.inputs[0].shape == (1, 3, 128, 150)


def test_a_fixed_size_must_be_one():
    for size, words in (([100, 200], "200x100 .*below 128"), ([300], "must be two numbers, height and width")):
        with pytest.raises(ValueError, match=f"image_size.*{words}"):
            detector_graphs(nn.Identity(), Brightness(), image_size=size)


def onnx_run(path, image):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(part) for part in session.run(None, {"image": image.numpy()})]


def torch_run(path, image):
    return list(torch.export.load(path).module()(image))


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [None, [130, 200]])
def test_files_detect_as_the_module_at_sizes_that_were_not_traced(image_size, tmp_path):
    pytest.importorskip("onnxscript")
    options = {"score_threshold": 0.3, "max_boxes": 60}
    detector = DetectorGraph(Pixels(), Brightness())
    files = export_module(Detector(Brightness(), **options), tmp_path, repeats=1, options={"image_size": image_size})
    assert sorted(file.path.name for file in files) == [
        "detector.onnx", "detector.pt2", "detector_nms.onnx", "detector_nms.pt2"
    ]  # fmt: skip
    for size in [image_size] if image_size else [(128, 128), (257, 131), (200, 500)]:
        for image in (torch.rand(1, 3, *size), torch.zeros(1, 3, *size), torch.ones(1, 3, *size)):
            (found,) = detect(detector, image, nms_iou=0.3, pre_nms=5000, **options)
            assert len(found) == 0 or image.any()
            for file in files:
                run = onnx_run if file.path.suffix == ".onnx" else torch_run
                with_nms = file.path.stem == "detector_nms"
                expected = padded(found, 60) if with_nms else detector(image)
                if with_nms and (image == 1).all():
                    continue  # equal scores: each runtime has an order of its own
                for ours, theirs in zip(run(file.path, image), expected, strict=True):
                    assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["logit", "cosine"])
def test_files_of_the_network_itself_agree(mode, tmp_path):
    pytest.importorskip("onnxscript")
    module = Detector(ASFDNet("d0", channels=8, cls_mode=mode), mode)
    graphs = module.export_graphs()
    module.export_graphs = lambda: {"detector": graphs["detector"]}  # untrained, its scores are too near to each other
    for file in export_module(module, tmp_path, repeats=1):
        assert file.relative < 1e-4
