"""Files that leave Python: the same answers at other sizes, and nothing written where they differ."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.export import Dim
from torch.testing import assert_close

from lit_methods import HRank, ImageClassifier
from lit_methods.contract import ExportGraph
from lit_methods.exporting import ExportError, compared_inputs, export_module
from tests.hrank_vectors import FILES, RATES, fill, random_plan
from tests.tiny import TinyNet

PLAN = {"arch": "tiny", "keep": {"body.conv1": [0, 3, 5], "body.conv2": [1, 2, 8, 9], "body.conv3": [0, 1, 2, 4, 7]}}


def classifier(**arguments):
    defaults = {"backbone": "tiny", "num_classes": 4, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    module = HRank(**defaults | arguments)
    fill(module.model)
    return module


def onnx_logits(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"image": images.numpy()})[0])


def torch_logits(path, images):
    return torch.export.load(path).module()(images)


def check(files, module, shapes):
    """Every file gives the module's logits, at shapes that the export itself never saw."""
    for file in files:
        run = {".onnx": onnx_logits, ".pt2": torch_logits}[file.path.suffix]
        for shape in shapes:
            images = torch.rand(shape)
            with torch.no_grad():
                expected = module.eval()(images)
            assert_close(run(file.path, images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A pruned network and its two files."""
    pytest.importorskip("onnxscript")
    module = classifier(plan=PLAN, class_names=["a", "b", "c", "ä"])
    return module, export_module(module, tmp_path_factory.mktemp("run") / "export", repeats=1)


def test_a_pruned_network_at_other_sizes(pruned):
    module, files = pruned
    assert [file.path.name for file in files] == ["classifier.onnx", "classifier.pt2"]
    assert {path.name for path in files[0].path.parent.iterdir()} == {file.path.name for file in files}  # no .onnx.data
    assert [file.bytes for file in files] == [file.path.stat().st_size for file in files]
    check(files, module, [(1, 3, 8, 8), (5, 3, 20, 50), (2, 3, 32, 32)])


def test_files_describe_themselves(pruned):
    onnx = pytest.importorskip("onnx").load(pruned[1][0].path)
    (images,), (logits,) = onnx.graph.input, onnx.graph.output
    axes = [axis.dim_param or axis.dim_value for axis in images.type.tensor_type.shape.dim]
    assert (images.name, axes, logits.name) == ("image", ["batch", 3, "height", "width"], "logits")
    assert [entry.version for entry in onnx.opset_import if entry.domain == ""] == [18]
    extra = {"metadata.json": ""}
    program = torch.export.load(pruned[1][1].path, extra_files=extra)
    assert program.example_inputs is None  # zeros, which would outweigh a small network
    facts = json.loads(extra["metadata.json"])
    assert facts == {entry.key: entry.value for entry in onnx.metadata_props}
    assert json.loads(facts.pop("class_names")) == ["a", "b", "c", "ä"]
    assert facts == {
        "graph": "classifier",
        "class": "lit_methods.hrank.module.HRank",
        "inputs": "image (batch, 3, height, width), RGB in [0, 1]",
    }


def test_files_hold_no_paths_of_this_machine(pruned, tmp_path):
    onnx, program = (file.path for file in pruned[1])
    shutil.unpack_archive(program, tmp_path, "zip")
    parts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for content in (onnx.read_bytes(), b"".join(parts)):
        assert b"conv1" in content
        assert str(Path(__file__).parents[1]).encode() not in content
        assert b"stack_trace" not in content


@pytest.mark.slow
def test_a_pruned_file_is_smaller(pruned, tmp_path):
    module, files = pruned
    dense = classifier()
    saved = 4 * (sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in module.parameters()))
    assert saved > 8000
    for full, thin in zip(export_module(dense, tmp_path, repeats=1), files, strict=True):
        assert full.bytes - thin.bytes > 0.7 * saved


def test_the_module_is_left_as_it_was(tmp_path):
    module = classifier().to(torch.bfloat16).train()
    module.model.fc.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    torch.set_num_threads(2)  # one is what latencies are measured with
    (file,) = export_module(module, tmp_path, ["torch"], repeats=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert [part.training for part in module.modules()] == modes
    assert all(p.requires_grad for p in module.parameters())
    assert threads == 2
    assert_close(module.state_dict(), before, rtol=0, atol=0)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = module.float().eval()(images)  # in evaluation mode, in single precision
    assert_close(torch_logits(file.path, images), expected, rtol=1e-5, atol=1e-6)


def test_a_network_of_ones_own_in_code(tmp_path):
    """One that takes a single size has a dynamic batch alone."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22 * 30, 5))
    module = ImageClassifier(net, num_classes=5, input_size=[3, 24, 32])
    (graph,) = module.export_graphs().values()
    assert list(graph.dynamic_shapes["image"]) == [0]
    pytest.importorskip("onnxscript")
    check(export_module(module, tmp_path, repeats=1), module, [(1, 3, 24, 32), (4, 3, 24, 32)])


@pytest.mark.parametrize(
    ("arch", "size", "smallest"),
    [("tiny", 32, 8), ("vgg16_bn_cifar", 32, 16), ("densenet40_cifar", 32, 8), ("resnet50", 224, 8)],
)
def test_from_which_size_on_is_tried(arch, size, smallest):
    (graph,) = ImageClassifier(arch).export_graphs().values()
    assert graph.inputs[0].shape == (2, 3, size, size)
    assert [graph.dynamic_shapes["image"][axis].min for axis in (2, 3)] == [smallest, smallest]


class Doubling(TinyNet):
    """Computes something else while it is traced."""

    def forward(self, x):
        y = super().forward(x)
        return 2 * y if torch.compiler.is_exporting() else y


class Stubborn(TinyNet):
    """Python's own number decides, which no graph can hold."""

    def forward(self, x):
        return super().forward(x) * float(x.mean())


@pytest.mark.slow
def test_a_pool_of_several_cells_pins_the_size(tmp_path):
    """As in VGG. ONNX has none for other sizes."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 5))
    module = ImageClassifier(network, num_classes=5, input_size=[3, 16, 16])
    check(export_module(module, tmp_path), module, [(1, 3, 16, 16), (3, 3, 16, 16)])


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_a_graph_that_differs_leaves_no_file(tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    suffix = {"onnx": "onnx", "torch": "pt2"}[kind]
    module = ImageClassifier(Doubling(4), num_classes=4)
    with pytest.raises(ExportError, match=rf"classifier\.{suffix}: differs from the module by 1 of its largest output"):
        export_module(module, tmp_path / "export", [kind], repeats=1)
    assert not list(tmp_path.iterdir())
    if kind == "torch":  # whoever can live with it says so
        (file,) = export_module(module, tmp_path / "export", [kind], repeats=1, tolerance=1.5)
        assert file.relative == pytest.approx(1, abs=1e-5)


def test_what_was_there_stays_where_the_new_export_fails(tmp_path):
    export_module(ImageClassifier(TinyNet(4), num_classes=4), tmp_path / "export", ["torch"], repeats=1)
    before = (tmp_path / "export" / "classifier.pt2").read_bytes()
    diverged = ImageClassifier(TinyNet(4), num_classes=4)
    nn.init.constant_(diverged.model.fc.weight, torch.nan)
    for module, fault in ((diverged, "by nan"), (ImageClassifier(Stubborn(4), num_classes=4), "cannot be traced")):
        with pytest.raises(ExportError, match=fault):
            export_module(module, tmp_path / "export", ["torch"], repeats=1)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["classifier.pt2"]
    assert (tmp_path / "export" / "classifier.pt2").read_bytes() == before


def test_what_cannot_be_exported_is_said_first(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="LightningModule offers no export_graphs"):
        export_module(LightningModule(), tmp_path, ["torch"])
    with pytest.raises(ValueError, match="formats='tflite': must be one of onnx, torch"):
        export_module(classifier(), tmp_path, ["tflite"])
    with pytest.raises(ValueError, match="formats is empty"):
        export_module(classifier(), tmp_path, [])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"needs onnxruntime.*; pip install 'lit-methods\[export\]'"):
        export_module(classifier(), tmp_path, ["onnx"])
    assert not list(tmp_path.iterdir())


def test_every_dynamic_axis_is_compared_at_two_other_sizes():
    batch, length = Dim("batch"), Dim("length", max=7)
    graph = ExportGraph(
        nn.Identity(),
        (torch.zeros(2, 3, 16, 24), torch.arange(12).view(2, 6)),
        {"image": {0: batch, 2: Dim("height", min=8), 3: Dim("width")}, "tokens": {0: batch, 1: length}},
    )
    first, second = compared_inputs(graph)
    assert [tuple(x.shape) for x in first] == [(1, 3, 21, 18), (1, 7)]
    assert [tuple(x.shape) for x in second] == [(3, 3, 8, 31), (3, 4)]
    assert second[1].flatten().tolist() == list(range(12))
    assert 0 <= float(second[0].min()) < float(second[0].max()) <= 1


@pytest.mark.slow
def test_compiled_pruned_network_gives_its_logits():
    module = classifier(plan=PLAN).eval()
    compiled = torch.compile(module, backend="aot_eager")
    images = torch.rand(3, 3, 32, 32)
    assert_close(compiled(images), module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["tiny", "resnet56"])
def test_inductor_gives_the_pruned_networks_logits(arch):
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    plan = PLAN if arch == "tiny" else random_plan(arch, RATES[arch]).to_dict()
    module = classifier(backbone=arch, plan=plan).eval()
    compiled = torch.compile(module)
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = module(images)
        assert_close(compiled(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("arch", FILES)
def test_every_network_pruned_at_the_published_rates(arch, tmp_path):
    pytest.importorskip("onnxscript")
    plan = random_plan(arch, RATES[arch]).to_dict()
    module = classifier(backbone=arch, num_classes=10, plan=plan)
    side = module.export_graphs()["classifier"].inputs[0].shape[-1]
    files = export_module(module, tmp_path, repeats=1)
    check(files, module, [(1, 3, side, side), (3, 3, side + 7, side - 5), (2, 3, 16, 2 * side)])
