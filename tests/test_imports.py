"""Who may import whom: the table of directions that keeps the house easy to walk through."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FREE = {"torch", "torchvision", "numpy", "scipy", "sklearn", "PIL", "safetensors", "rich", "yaml"}
EXTRAS = {"onnx", "onnxscript", "onnxruntime", "av", "optuna", "torch_pruning", "wandb_workspaces"}
ENTRY_NAMES = ("fit", "validate", "test", "predict", "export", "doctor", "dashboard", "report")
ENTRIES = {f"lit_methods.{name}" for name in ENTRY_NAMES}
EXTRA_USERS = {("lit_methods.exporting", "onnxruntime"), ("lit_methods.backbones.traced", "torch_pruning")}
PURE = {"functional", "search_space", "mip", "searchers"}
NETWORKS = {"model", "gating", "search", "tracker"}


def modules() -> dict[str, Path]:
    files = [p for top in ("lit_methods", "datamodules", "callbacks") for p in sorted((ROOT / top).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


MODULES = modules()


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names that a file imports, also inside functions; not those for type checkers alone."""
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_level_only and isinstance(node, ast.FunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # "from lit_methods import backbones" imports lit_methods.backbones
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(tree)
    return found


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def allowed(module: str, target: str) -> bool:
    """The table, row by row."""
    top, *rest = module.split(".")
    own = ".".join(module.split(".")[:2])
    leaf = rest[-1] if rest else ""
    functional = under(target, "lit_methods.functional")
    if top == "datamodules":
        return under(target, "datamodules", "lightning") or functional
    if top == "callbacks":
        method_module = target.endswith(".module") or under(target, "lit_methods.cli") or target in ENTRIES
        ours = under(target, "callbacks", "lit_methods") and not method_module
        return ours or under(target, "lightning", "torchmetrics", "matplotlib") or (
            under(target, "wandb") and module == "callbacks.report"
        )  # fmt: skip
    if module in ENTRIES or under(module, "lit_methods.cli") or module == "lit_methods":
        return True
    if (module, target) in EXTRA_USERS:
        return True
    if under(module, "lit_methods.metrics"):
        return functional or under(target, "lit_methods.metrics", "torchmetrics")
    pure = functional or target in ("lit_methods.backbones.plan", "lit_methods.backbones")
    if under(module, "lit_methods.functional"):
        return functional
    if leaf in PURE:
        return pure or under(target, own)
    if under(module, "lit_methods.backbones") or leaf in NETWORKS:
        return pure or under(target, own, "lit_methods.backbones")
    floors = ("backbones", "metrics", "contract", "checkpoint_io", "inference", "classification", "base_checkpoint")
    shared = (f"lit_methods.{name}" for name in floors)
    return pure or under(target, own, *shared, "lightning", "torchmetrics")


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    for target in imports(MODULES[module]):
        top = target.split(".")[0]
        if top not in sys.stdlib_module_names and top not in FREE:
            assert allowed(module, target), f"{module} may not import {target}"


@pytest.mark.parametrize("module", MODULES)
def test_no_extra_at_module_import(module):
    tops = {target.split(".")[0] for target in imports(MODULES[module], top_level_only=True)}
    assert not tops & (EXTRAS | {"wandb"})


def test_the_rules_refuse_what_they_should():
    assert not allowed("datamodules.cifar", "lit_methods.hrank.functional")
    assert not allowed("callbacks.hrank_pruning", "lit_methods.hrank.module")
    assert not allowed("callbacks.hrank_pruning", "lit_methods.cli.runtime")
    assert not allowed("lit_methods.hrank.functional", "lightning.pytorch")
    assert not allowed("lit_methods.hrank.module", "lit_methods.ppba.functional")
    assert not allowed("lit_methods.functional.complexity", "lit_methods.hrank.functional")
    assert not allowed("callbacks.prediction_logger", "wandb")
    assert allowed("callbacks.report", "wandb")


def test_the_package_is_cheap_to_import():
    code = "import sys, lit_methods, callbacks; sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_lazy_names_are_all_there():
    import callbacks
    import datamodules
    import lit_methods

    for package in (lit_methods, callbacks, datamodules):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
        with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
            package.Nothing  # noqa: B018
