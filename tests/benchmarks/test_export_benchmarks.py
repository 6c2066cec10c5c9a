"""Exported pruned networks under ONNX Runtime beside PyTorch: one image, one CPU thread. Prints ratios.

python -m pytest tests/benchmarks/test_export_benchmarks.py -m benchmark -s
"""

import pytest

from lit_methods import ImageClassifier
from lit_methods.exporting import export_module
from tests.hrank_vectors import RATES, fill, random_plan

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("arch", ["vgg16_bn_cifar", "resnet56", "resnet50"])
def test_latency_under_onnx_runtime(arch, tmp_path):
    pytest.importorskip("onnxscript")
    sizes = {}
    for kind, plan in (("dense", None), ("pruned", random_plan(arch, RATES[arch]).to_dict())):
        module = ImageClassifier(arch, plan=plan)
        fill(module.model)
        files = {file.path.suffix: file for file in export_module(module, tmp_path / kind, repeats=15)}
        onnx, program = files[".onnx"], files[".pt2"]
        sizes[kind] = onnx.bytes
        print(
            f"\n{arch}, {kind}: PyTorch {onnx.module_ms:.2f} ms, ONNX Runtime {onnx.latency_ms:.2f} ms "
            f"(ratio {onnx.module_ms / onnx.latency_ms:.1f}), torch.export {program.latency_ms:.2f} ms "
            f"(ratio {program.module_ms / program.latency_ms:.1f}); "
            f"{onnx.bytes:,} and {program.bytes:,} bytes; relative difference {onnx.relative:.1g}"
        )
    print(f"{arch}: the pruned ONNX file is {sizes['dense'] / sizes['pruned']:.1f} times smaller")
    assert sizes["pruned"] < sizes["dense"]
