"""Fifty classes of the real ImageNet network at once, in memory that an argument bounds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CHUNKS = (5, 50)

LEARN = """
import json, re, sys
from pathlib import Path
import numpy as np
import torch
from lightning.pytorch import Trainer
from datamodules import ImageNetDataModule
from lit_methods import NAD

root, weights, chunk, out = sys.argv[1:]
torch.set_num_threads(1)
classes = list(range(0, 1000, 20))
data = ImageNetDataModule(
    root, batch_size=50, per_class_batch=1, class_subset=classes, num_workers=0, val_fraction=0
)
module = NAD(
    "mobilenet_v1_x025", class_ids=classes, num_classes=1000, mean=data.mean, std=data.std, base_checkpoint=weights,
    chunk_size=int(chunk),
)
trainer = Trainer(
    max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, default_root_dir=out, use_distributed_sampler=False,
)
def highest():  # of this process alone: ru_maxrss begins with that of the one that it was forked from
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1))

before = highest()
trainer.fit(module, datamodule=data)
peak = highest() - before
np.savez(out, **{str(i): m.detach().numpy() for i, m in enumerate(module.gate_logits)})
print(json.dumps({"peak_kib": peak, "progress": module.progress.sum(0).tolist()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
def test_fifty_classes_of_the_real_network_in_bounded_memory(shared: Path, tmp_path: Path):
    for name in ("train", "val"):  # one picture of each class: it serves as both
        (tmp_path / name).symlink_to(shared / "data" / "imagenet_sample" / "val")
    weights = shared / "data" / "weights" / "imagenet_mobilenet_v1_x025.npz"
    found, gates = {}, {}
    for chunk in CHUNKS:
        out = tmp_path / f"{chunk}.npz"
        words = [sys.executable, "-c", LEARN, str(tmp_path), str(weights), str(chunk), str(out)]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=300)
        found[chunk] = json.loads(done.stdout.splitlines()[-1])
        with np.load(out) as arrays:
            gates[chunk] = {key: arrays[key] for key in arrays}
    print({chunk: f"{figures['peak_kib'] / 1024:.0f} MiB" for chunk, figures in found.items()})
    steps, skipped, images = found[5]["progress"]
    assert images == 200
    assert steps > 50  # of 200: the network gets half of the pictures right, cut at random fewer
    assert steps + skipped == 200
    assert found[5]["peak_kib"] < 0.5 * found[50]["peak_kib"]
    for key, values in gates[5].items():
        assert np.abs(values - gates[50][key]).max() < 1e-4
