"""Prune what is inside of other methods: the encoder of a re-ID module, the backbone of a face detector or a tracker.

Run: pip install 'lit-methods[prune]' && python examples/prune_other_parts.py tracker rank (or: reid, faces; sketch)
A trained checkpoint comes last; without one, the embedded recipe's module is first trained here, for minutes.
"""

import sys
from collections import Counter
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer, seed_everything

import datamodules
import lit_methods
from callbacks.pruning_parts import load_pruned, prune_part
from lit_methods.ad_cluster.module import SourceReID
from lit_methods.backbones.parts import Joined, inputs_of
from lit_methods.cli.recipes import find_recipes
from lit_methods.functional import count_macs, measure_latency

PARTS = {  # recipe, part, figure, epochs of training here, epochs of fine-tuning, its factor on the learning rate
    "reid": ("ad_cluster", "model.network", "val/mAP", 30, 5, 1.0),
    "faces": ("asfd", "model.backbone", "val/ap_all", 48, 8, 0.3),
    "tracker": ("siamban", "model.backbone", "val/success_auc", 10, 4, 0.2),
}
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "use_distributed_sampler": False}
QUIET |= {"accelerator": "cpu", "gradient_clip_val": 10.0, "enable_progress_bar": False, "enable_model_summary": False}


def build(kind: str) -> tuple[LightningModule, Any]:
    """Module and data of the embedded recipe; of AD-Cluster's the supervised training, on the persons of the target."""
    recipe = yaml.safe_load(find_recipes()[PARTS[kind][0]].read_text("utf-8"))
    model, data = (recipe[name] for name in ("model", "data"))
    options = data["init_args"] | ({"train_on": "ids", "source_root": None} if kind == "reid" else {})
    loaded = getattr(datamodules, data["class_path"].rpartition(".")[2])(**options)
    if kind != "reid":
        return getattr(lit_methods, model["class_path"].rpartition(".")[2])(**model["init_args"]), loaded
    loaded.prepare_data()
    loaded.setup("fit")
    wants = {"mean": list(loaded.mean), "std": list(loaded.std), "input_size": list(loaded.input_size)}
    return SourceReID("tiny", num_classes=loaded.num_classes, head="bnneck", lr=1e-3, **wants), loaded


def anneal(module: LightningModule, factor: float) -> None:
    """Rates for weights that are trained: lower, and from the first epoch on falling, where a recipe warms up."""
    rates = module.hparams
    rates["lr"] *= factor
    if "warmup_epochs" in rates:
        rates.update(warmup_epochs=0, end_lr=rates["lr"] / 50)


def main(kind: str = "tracker", by: str = "rank", checkpoint: str | None = None, **limits: Any) -> dict[str, float]:
    """Before, right after and after a short fine-tune; limits go to the Trainer."""
    seed_everything(0)
    _, part, figure, epochs, more, factor = PARTS[kind]
    module, data = build(kind)
    if checkpoint is None:
        Trainer(**QUIET | {"max_epochs": epochs, "limit_val_batches": 0} | limits).fit(module, datamodule=data)
    else:
        module = load_pruned(checkpoint)

    def metric() -> float:
        return Trainer(**QUIET | limits).validate(module, datamodule=data, verbose=False)[0][figure]

    with inputs_of(module, part) as seen:  # what the part is given, for the ranks of its maps
        figures = {"before": metric()}
    size = Counter(tuple(x.shape[1:]) for x in seen).most_common(1)[0][0]
    images = torch.cat([x for x in seen if x.shape[1:] == size])[:64]
    whole = module.get_submodule(part)
    prune_part(module, part, images.split(8), by=by, target_macs=0.6)  # type: ignore[arg-type]
    small = module.get_submodule(part)
    for name, network in {"whole": Joined(whole), "pruned": Joined(small)}.items():
        figures[f"params_{name}"] = sum(p.numel() for p in network.parameters())
        figures[f"macs_{name}"] = count_macs(network, size)
    times = measure_latency({"ms_whole": Joined(whole), "ms_pruned": Joined(small)}, size, repeats=20)
    figures |= {"right_after": metric()}
    seed_everything(0)
    anneal(module, factor)
    trainer = Trainer(**QUIET | {"max_epochs": more, "limit_val_batches": 0} | limits)
    trainer.fit(module, datamodule=data)  # a fit of its own: new optimisers, a new schedule
    trainer.save_checkpoint(path := f"runs/prune_other_parts/{kind}_{by}.ckpt")
    module = load_pruned(path)  # the plan is in the file, in plain types: no torch-pruning, nothing to remember
    return figures | times | {"fine_tuned": metric()}


if __name__ == "__main__":
    for name, value in main(*sys.argv[1:]).items():
        print(f"{name:14} {value:12,.4f}" if isinstance(value, float) else f"{name:14} {value:12,}")
