"""Networks out of Python: ONNX and ``torch.export`` files, each compared with the module before it gets its name."""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.export import ExportedProgram

from lit_methods.contract import ExportGraph, Exports
from lit_methods.functional.suggestions import first_line

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18  # what torch's exporter writes by itself; later ones are conversions of it
_ONNX_LIMIT = 2**31  # of protobuf, for a file with its weights inside

Run = Callable[[Sequence[Tensor]], list[Tensor]]


class ExportError(RuntimeError):
    """A graph that cannot be exported, or a file that computes something else than its module."""


@dataclass(frozen=True)
class ExportedFile:
    """One written and compared file.

    Args:
        path: where it is.
        bytes: its size.
        difference: largest absolute difference to the module's outputs, over all compared inputs.
        relative: the same as a fraction of the largest absolute output.
        latency_ms: median of single passes at batch 1 on one CPU thread: of ONNX Runtime, or of the loaded program.
        module_ms: the module itself (eager, ``channels_last``), measured in turns with the file.
    """

    path: Path
    bytes: int
    difference: float
    relative: float
    latency_ms: float
    module_ms: float


def export_module(
    module: LightningModule,
    directory: str | Path,
    formats: Sequence[str] = ("onnx", "torch"),
    *,
    tolerance: float = 1e-4,
    repeats: int = 20,
    metadata: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[ExportedFile]:
    """Write each graph of a module as ``NAME.onnx`` and ``NAME.pt2``, and compare the files with it.

    A float32 copy on the CPU in eval mode is exported; the module itself is not touched. Every file is loaded again and
    run on random inputs, twice for all dynamic axes, with sizes other than the traced one. Nothing appears in
    ``directory`` unless all files agree with the module.

    Args:
        module: offers ``export_graphs``, pruned or not.
        directory: made where it does not exist; files of the same names are replaced.
        formats: ``"onnx"``, ``"torch"`` or both.
        tolerance: largest relative difference that passes.
        repeats: timed passes of each file.
        metadata: written into the files beside class, inputs and class names; ``onnx`` keeps it as model properties,
            ``torch`` as ``metadata.json`` among the extra files.
        options: the method's own, for its ``export_graphs``.

    Raises:
        ValueError: an unknown format, a missing package, a module without graphs, or what the method says to options.
        ExportError: a graph cannot be exported, or a file differs from the module.

    Example:
        >>> from lit_methods import ImageClassifier
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
        >>> module = ImageClassifier(net, num_classes=10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (file,) = export_module(module, folder, ["torch"], repeats=1)
        ...     images, program = torch.rand(4, 3, 40, 40), torch.export.load(file.path).module()
        >>> torch.allclose(program(images), module.eval()(images), atol=1e-5)
        True
    """
    _check_formats(formats)
    if not isinstance(module, Exports):
        raise ValueError(f"{type(module).__name__} offers no export_graphs(), so there is nothing to export")
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    done: list[ExportedFile] = []
    with tempfile.TemporaryDirectory(prefix=".export-", dir=directory.parent) as scratch:
        for name, graph in module.export_graphs(**(options or {})).items():
            facts = {"graph": name, **_describe(module, graph), **(metadata or {})}
            done += _export_graph(Path(scratch), name, _on_cpu(graph), formats, facts, tolerance, repeats)
        directory.mkdir(exist_ok=True)
        for file in done:
            os.replace(Path(scratch, file.path.name), directory / file.path.name)
    return [ExportedFile(**{**vars(file), "path": directory / file.path.name}) for file in done]


def _check_formats(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in SUFFIXES:
            raise ValueError(f"formats={name!r}: must be one of {', '.join(SUFFIXES)}")
    if not formats:
        raise ValueError(f"formats is empty: give one of {', '.join(SUFFIXES)}")
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if "onnx" in formats and missing:
        raise ValueError(
            f"formats='onnx': needs {', '.join(missing)}; pip install 'lit-methods[export]', or give 'torch' alone"
        )


def _describe(module: LightningModule, graph: ExportGraph) -> dict[str, str]:
    """What somebody needs to know who has the file alone."""
    names = list(graph.dynamic_shapes) or [f"input_{i}" for i in range(len(graph.inputs))]
    inputs = []
    for name, example in zip(names, graph.inputs, strict=True):
        axes = graph.dynamic_shapes.get(name) or {}
        sizes = ", ".join(axes[i].__name__ if i in axes else str(n) for i, n in enumerate(example.shape))
        kind = f", {graph.pictures}" if example.is_floating_point() and example.ndim == 4 else ""
        inputs.append(f"{name} ({sizes}){kind}")
    facts = {"class": f"{type(module).__module__}.{type(module).__qualname__}", "inputs": "; ".join(inputs)}
    if classes := module.hparams.get("class_names"):
        facts["class_names"] = json.dumps(list(classes))
    return facts


def _on_cpu(graph: ExportGraph) -> ExportGraph:
    module = copy.deepcopy(graph.module).cpu().float().eval().requires_grad_(False)
    inputs = tuple(x.detach().cpu() for x in graph.inputs)
    inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    return ExportGraph(module, inputs, graph.dynamic_shapes, graph.outputs)


@torch.no_grad()
def _export_graph(
    folder: Path,
    name: str,
    graph: ExportGraph,
    formats: Sequence[str],
    facts: dict[str, str],
    tolerance: float,
    repeats: int,
) -> list[ExportedFile]:
    writers: dict[str, Callable[..., Run]] = {"onnx": _write_onnx, "torch": _write_torch}
    try:
        program = _trace(graph)
    except Exception as ex:  # of any kind: the tracer runs the network's own code
        raise ExportError(f"{name}: cannot be traced: {first_line(ex)}") from ex
    runs: dict[Path, Run] = {}
    for kind in dict.fromkeys(formats):
        path = folder / f"{name}{SUFFIXES[kind]}"
        try:
            runs[path] = writers[kind](path, program, graph, facts)
        except ExportError:
            raise
        except Exception as ex:
            raise ExportError(f"{path.name}: cannot be written: {first_line(ex)}") from ex
    differences = {path: _compare(path.name, run, graph, tolerance) for path, run in runs.items()}
    module_ms, *latencies = _latencies(_module_run(graph.module), list(runs.values()), graph, repeats)
    return [
        ExportedFile(path, path.stat().st_size, *differences[path], latency, module_ms)
        for path, latency in zip(runs, latencies, strict=True)
    ]


def _trace(graph: ExportGraph) -> ExportedProgram:
    # As torch.onnx traces by itself: else a size that comes down to one pixel somewhere inside is forbidden for ever.
    # Deferred: the two ways to halve a size in a residual block are equal, which the tracer cannot prove.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = torch.export.export(
            graph.module,
            graph.inputs,
            dynamic_shapes=graph.dynamic_shapes or None,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None  # for ImageNet a megabyte of zeros
    return program


def _write_onnx(path: Path, program: ExportedProgram, graph: ExportGraph, facts: dict[str, str]) -> Run:
    size = sum(tensor.nbytes for tensor in graph.module.state_dict().values())
    if size >= _ONNX_LIMIT:
        raise ExportError(
            f"{path.name}: {size / 2**30:.1f} GiB of weights, one ONNX file holds 2; use the format 'torch'"
        )
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=list(graph.dynamic_shapes) or None,
        output_names=list(graph.outputs),
        dynamic_shapes=graph.dynamic_shapes or None,
        verbose=False,
    )
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # names of Python classes, a fifth of the file of a small network
    exported.model.metadata_props.update(facts)
    exported.save(path, external_data=False)
    return _onnx_run(path)


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(np.asarray(y)) for y in session.run(None, feed)]

    return run


def _write_torch(path: Path, program: ExportedProgram, graph: ExportGraph, facts: dict[str, str]) -> Run:
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(facts, indent=2)})
    return _module_run(torch.export.load(path).module())


def _module_run(module: nn.Module) -> Run:
    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = module(*inputs)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def _compare(name: str, run: Run, graph: ExportGraph, tolerance: float) -> tuple[float, float]:
    """Largest absolute and relative difference between a file and its module."""
    reference = _module_run(graph.module)
    worst = worst_relative = 0.0
    for inputs in compared_inputs(graph):
        sizes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
        expected = reference(inputs)
        try:
            got = run(inputs)
        except Exception as ex:
            raise ExportError(f"{name}: does not run on inputs of {sizes}: {first_line(ex)}") from ex
        if graph.aligned is not None:
            got = graph.aligned(expected, got)
        for ours, theirs in zip(expected, got, strict=True):
            if ours.shape != theirs.shape:
                raise ExportError(
                    f"{name}: gives {tuple(theirs.shape)} for inputs of {sizes}, the module {tuple(ours.shape)}"
                )
            if not ours.numel():
                continue
            difference = float((ours.double() - theirs.double()).abs().max())
            relative = difference / max(float(ours.abs().max()), torch.finfo(torch.float32).tiny)
            if not relative <= tolerance:  # NaN, too
                raise ExportError(
                    f"{name}: differs from the module by {relative:.2g} of its largest output for inputs of {sizes}, "
                    f"more than {tolerance:g}"
                )
            worst, worst_relative = max(worst, difference), max(worst_relative, relative)
    return worst, worst_relative


def compared_inputs(graph: ExportGraph) -> list[tuple[Tensor, ...]]:
    """Two sets of random inputs in which every dynamic axis has two sizes, neither of them the example's.

    Where there are several dynamic axes, one is short while the next is long: a confusion of the two shows. Short is
    the smallest size that the graph declares, else three quarters of the example's. Floating point values lie in
    [0, 1], others are those of the example, repeated.

    Example:
        >>> from torch.export import Dim
        >>> axes = {0: Dim("batch"), 2: Dim("height", min=8), 3: Dim("width", min=8)}
        >>> graph = ExportGraph(nn.Identity(), (torch.zeros(2, 3, 32, 32),), {"input": axes})
        >>> [tuple(images.shape) for images, in compared_inputs(graph)]
        [(1, 3, 41, 8), (3, 3, 8, 41)]
    """
    sizes: dict[str, list[int]] = {}  # an axis that two inputs share has one size
    for example, axes in zip(graph.inputs, _axes(graph), strict=True):
        for axis, dim in axes.items():
            if dim.__name__ not in sizes:
                short, long = _two_sizes(example.shape[axis], dim)
                sizes[dim.__name__] = [short, long] if len(sizes) % 2 == 0 else [long, short]
    generator = torch.Generator().manual_seed(0)
    sets = []
    for turn in range(2):
        inputs = []
        for example, axes in zip(graph.inputs, _axes(graph), strict=True):
            shape = [sizes[axes[i].__name__][turn] if i in axes else n for i, n in enumerate(example.shape)]
            if example.is_floating_point():
                inputs.append(torch.rand(shape, generator=generator))
            else:
                inputs.append(torch.from_numpy(np.resize(example.numpy(), shape)))
        sets.append(tuple(inputs))
    return sets


def _axes(graph: ExportGraph) -> list[dict[int, Any]]:
    if not graph.dynamic_shapes:
        return [{} for _ in graph.inputs]
    return [dict(axes or {}) for axes in graph.dynamic_shapes.values()]


def _two_sizes(example: int, dim: Any) -> tuple[int, int]:
    short = dim.min if dim.min > 1 else max(1, 3 * example // 4)
    long = min(example + example // 4 + 1, dim.max)
    return (short, long) if short < example else (long, long + 1)


def _latencies(reference: Run, runs: Sequence[Run], graph: ExportGraph, repeats: int) -> list[float]:
    """Median milliseconds of single passes at batch 1, taken in turns on one thread; the reference's first."""
    inputs = [x[:1] if 0 in axes else x for x, axes in zip(graph.inputs, _axes(graph), strict=True)]
    layout = torch.channels_last  # as our modules run their networks
    calls = [(reference, [x.contiguous(memory_format=layout) if x.ndim == 4 else x for x in inputs])]
    calls += [(run, inputs) for run in runs]
    times: list[list[float]] = [[] for _ in calls]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(2 + repeats):  # two to warm up
            for (run, given), spent in zip(calls, times, strict=True):
                start = time.perf_counter()
                run(given)
                if turn >= 2:
                    spent.append(1000 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return [statistics.median(spent) for spent in times]
