"""What the doctor asks of a machine: installed packages, devices, room to write, Weights & Biases.

Nothing but the standard library is imported with this module: where a package is broken, the check that needs it says
so and the others go on.
"""

import importlib.util
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from lit_methods.cli.findings import Finding
from lit_methods.functional.suggestions import first_line

SHOWN = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy", "wandb")
_GIB = 2**30
_LITTLE_SHARED_MEMORY = _GIB // 2  # containers get 64 MiB unless asked for more: workers die of a bus error
_LITTLE_SPACE = _GIB
_TRIAL_BYTES = 2**20


def package_findings(package: str = "lit-methods") -> Iterator[Finding]:
    """Versions, and whether they satisfy what the installed package asks for."""
    from packaging.requirements import Requirement  # lightning depends on it
    from packaging.specifiers import SpecifierSet

    python = platform.python_version()
    versions = [f"{name} {_version(name) or 'absent'}" for name in (package, *SHOWN)]
    try:
        declared = [Requirement(text) for text in requires(package) or []]
        about: Any = metadata(package)
        wanted_python = about.get("Requires-Python", "")
    except PackageNotFoundError:
        yield Finding("ok", "versions", f"python {python}, {', '.join(versions)}")
        yield Finding("warning", "versions", f"{package} is not installed, so its bounds are unknown; pip install -e .")
        return
    faults = []
    if not SpecifierSet(wanted_python).contains(python, prereleases=True):
        faults.append(f"python {python} is not {wanted_python}; make an environment with another python")
    needed = [need for need in declared if need.marker is None or need.marker.evaluate({"extra": ""})]
    for need in needed:
        found = _version(need.name)
        if found is None:
            faults.append(f'{need.name} is not installed; pip install "{need.name}{need.specifier}"')
        elif not need.specifier.contains(found, prereleases=True):
            faults.append(f'{need.name} {found} is not {need.specifier}; pip install "{need.name}{need.specifier}"')
    yield Finding("ok", "versions", f"python {python}, {', '.join(versions)}")
    yield from (Finding("FAIL", "versions", fault) for fault in faults)
    if not faults:
        yield Finding("ok", "dependencies", f"all {len(needed)} that {package} needs are there, none too old")
    yield from _extra_findings(package, declared)


def _extra_findings(package: str, declared: list[Any]) -> Iterator[Finding]:
    """Optional packages, by extra; those for developing are nobody's concern at run time."""
    present, absent = [], []
    for extra in metadata(package).get_all("Provides-Extra") or []:
        own = [
            n for n in declared if n.marker is not None and n.marker.evaluate({"extra": extra}) and n.name != package
        ]
        missing = [n.name for n in own if _version(n.name) is None]
        if extra == "test" or not own:
            continue
        if missing:
            absent.append(f"{extra} (no {', '.join(missing)})")
        else:
            present.append(extra)
    text = f"present: {', '.join(present) or 'none'}"
    if absent:
        text += f'; absent: {", ".join(absent)}; pip install "{package}[NAME]" where you need one'
    yield Finding("ok", "extras", text)


def torchvision_findings() -> Iterator[Finding]:
    """Whether torchvision's compiled operators load into this torch."""
    import torch

    try:
        import torchvision

        kept = torchvision.ops.nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.5, 0.9]), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError) as ex:
        yield Finding(
            "FAIL",
            "torchvision",
            f"its operators do not load into torch {torch.__version__}: {first_line(ex)}; install the two together: "
            "pip install --upgrade torch torchvision",
        )
        return
    if kept.tolist() != [1]:
        yield Finding("FAIL", "torchvision", f"nms kept boxes {kept.tolist()} instead of [1]; reinstall torchvision")
        return
    yield Finding("ok", "torchvision", "its compiled operators run (nms)")


def device_findings() -> Iterator[Finding]:
    """What ``trainer.accelerator=auto`` would take, and the GPUs that torch sees."""
    import torch
    from lightning.pytorch import Trainer

    from lit_methods.cli.quiet import quiet

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
    yield Finding("ok", "devices", f"trainer.accelerator=auto takes {kind}, {trainer.num_devices} device(s)")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        used = free < total / 2
        yield Finding(
            "warning" if used else "ok",
            "devices",
            f"GPU {index}: {torch.cuda.get_device_name(index)}, {total / _GIB:.1f} GiB, {free / _GIB:.1f} GiB free"
            + ("; other processes hold the rest" if used else ""),
        )
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        yield Finding(
            "warning",
            "devices",
            f"nvidia-smi is here, but torch {torch.__version__} ({built}) sees no GPU; install torch from its CUDA "
            "index, or a newer driver",
        )


def thread_findings() -> Iterator[Finding]:
    """Threads of torch against the cores that this process may use."""
    import torch

    cores, threads = usable_cores(), torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS")
    text = f"{cores:g} core(s) usable, torch computes with {threads} thread(s), OMP_NUM_THREADS is {given or 'not set'}"
    if threads > max(1.0, cores):
        cure = f"more threads than cores wait for each other: OMP_NUM_THREADS={max(1, int(cores))}"
        yield Finding("warning", "threads", f"{text}; {cure}")
    else:
        hint = "" if given else "; with several processes set it to cores divided by processes"
        yield Finding("ok", "threads", text + hint)


def usable_cores() -> float:
    """Cores that this process may use: its affinity, cut by the container's quota where there is one."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or no limit ("max")
        return cores


def worker_findings() -> Iterator[Finding]:
    """How loaders start their workers, and the shared memory through which batches come back."""
    import torch.multiprocessing as multiprocessing

    text = f"started by {multiprocessing.get_context().get_start_method()}"
    if not os.path.isdir("/dev/shm"):
        yield Finding("ok", "workers", text)
        return
    size = shutil.disk_usage("/dev/shm")
    text += f", {size.free / _GIB:.1f} of {size.total / _GIB:.1f} GiB shared memory free in /dev/shm"
    if size.free < _LITTLE_SHARED_MEMORY:
        yield Finding("warning", "workers", f"{text}; give the container more (--shm-size=8g) or --data.num_workers 0")
    else:
        yield Finding("ok", "workers", text)


def write_findings(folder: Path, topic: str = "runs") -> Iterator[Finding]:
    """Whether files can really be written, synchronised and renamed where runs and temporary files go."""
    places = {topic: Path(os.path.abspath(folder)), "temporary": Path(tempfile.gettempdir())}
    for name, place in places.items():
        try:
            write_trial(place)
        except OSError as ex:
            cure = "give --run_dir elsewhere" if name == topic else "set TMPDIR to a folder that can be written"
            yield Finding("FAIL", name, f"{place} cannot be written: {first_line(ex)}; {cure}")
            continue
        free = shutil.disk_usage(existing(place)).free
        text = f"{place} can be written, {free / _GIB:.1f} GiB free"
        low = free < _LITTLE_SPACE
        yield Finding("warning" if low else "ok", name, text + ("; make room before long runs" if low else ""))


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists: where it would be made.

    Example:
        >>> existing(Path("/", "no such folder", "runs"))
        PosixPath('/')
    """
    path = Path(os.path.abspath(folder))
    while not path.exists():
        path = path.parent
    return path


def write_trial(folder: Path) -> None:
    """Write, synchronise, rename and remove a file as a checkpoint is written; nothing stays.

    Raises:
        OSError: something of it did not work.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing(folder)) as trial:
        part, whole = Path(trial, "trial.part"), Path(trial, "trial")
        with part.open("wb") as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, whole)
        if whole.stat().st_size != _TRIAL_BYTES:
            raise OSError(f"only {whole.stat().st_size} of {_TRIAL_BYTES} bytes arrived")


def wandb_findings() -> Iterator[Finding]:
    """The mode that ``--logger wandb`` would use, and the folders that W&B's variables name."""
    if importlib.util.find_spec("wandb") is None:
        yield Finding(
            "warning", "wandb", "not installed, so --logger wandb logs in metrics.csv alone; pip install wandb"
        )
        return
    from lit_methods.cli.loggers import has_wandb_key

    mode, key = os.environ.get("WANDB_MODE", ""), has_wandb_key()
    said = f"{'a key' if key else 'no key'} is configured, WANDB_MODE is {mode or 'not set'}"
    would = mode if mode not in ("", "online") else "online" if key else "offline"
    cure = "; wandb login before, or wandb sync of the run's wandb/offline-run-* after it" if would == "offline" else ""
    yield Finding("ok", "wandb", f"--logger wandb would be {would}: {said}{cure}")
    for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        folder = os.environ.get(variable)
        try:
            if folder is not None:
                write_trial(Path(folder))
        except OSError as ex:
            yield Finding(
                "warning", "wandb", f"{variable}={folder} cannot be written: {first_line(ex)}; name another folder"
            )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
