"""Search the three constants of a tracker on one half of the videos, and see on the other half what they are worth.

    python examples/tune_tracker.py runs/lasot/checkpoints/last.ckpt --benchmark lasot --root data/lasot --trials 50

Without arguments it trains a small tracker on drawn videos first, and runs a few trials on others, in a minute or two.

The ranges are those of the authors' own search. The network is not trained: only how its scores are weighed against
changes of size and shape (``penalty_k``) and against motion (``window_influence``), and how fast the box follows
(``lr``). What is best on the half that was searched is too good to be true there; the other half tells. Needs Optuna
(``pip install 'lit-methods[search]'``); with ``--storage sqlite:///tune.db`` a search goes on where it was interrupted,
and several machines share one. A storage is for one checkpoint and one choice of videos.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from datamodules import LaSOTDataModule
from datamodules.demo import write_tracking
from datamodules.tracking_benchmark import READERS, TrackingBenchmarkDataModule
from datamodules.tracking_sequences import TrackingSequence, TrackingSequences
from lit_methods import Predictor, SiamBAN
from lit_methods.siamban.evaluation import TrackingFigures

RANGES = {"penalty_k": (0.0, 0.6), "window_influence": (0.05, 0.65), "lr": (0.1, 0.8)}
Constants = dict[str, float]


def halves(videos: Sequence[TrackingSequence], seed: int) -> tuple[list[TrackingSequence], list[TrackingSequence]]:
    """The videos in two halves at random, the first one larger by a video where their number is odd."""
    order = np.random.default_rng(seed).permutation(len(videos)).tolist()
    middle = (len(videos) + 1) // 2
    chosen = [sorted(order[:middle]), sorted(order[middle:])]
    return [videos[i] for i in chosen[0]], [videos[i] for i in chosen[1]]


def score(module: SiamBAN, videos: Sequence[TrackingSequence], constants: Constants, benchmark: str) -> float:
    """Success AUC of these constants, or EAO on a benchmark with resets."""
    figures = TrackingFigures()
    figures.begin(benchmark)
    tracker = module.tracker(**constants)
    sequences = TrackingSequences(videos)
    for start in range(0, len(videos), 4):
        batch = sequences.__getitems__(range(start, min(start + 4, len(videos))))
        figures.update(batch, figures.follow(tracker, batch))
    return float(figures.compute()["eao" if figures.resets else "success_auc"])


def tune(
    module: SiamBAN, videos: Sequence[TrackingSequence], benchmark: str, trials: int, seed: int, storage: str | None
) -> Constants:
    """The best constants of so many trials, of which the first are the module's own.

    The finished trials of a storage count, whoever ran them. There the seed is not used: all who share the search, or
    go on with it, would draw the same numbers.
    """
    try:
        import optuna
    except ImportError:
        raise SystemExit("Optuna is missing: pip install 'lit-methods[search]'") from None

    def objective(trial: optuna.Trial) -> float:
        constants = {name: trial.suggest_float(name, *bounds) for name, bounds in RANGES.items()}
        return score(module, videos, constants, benchmark)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed if storage is None else None),
        storage=storage,
        study_name=f"siamban-{benchmark}",
        load_if_exists=True,
    )
    if not study.trials:
        study.enqueue_trial(own_constants(module))
    complete = (optuna.trial.TrialState.COMPLETE,)
    if missing := max(0, trials - len(study.get_trials(deepcopy=False, states=complete))):
        study.optimize(objective, missing, callbacks=[optuna.study.MaxTrialsCallback(trials, complete)])
    return dict(study.best_params)


def own_constants(module: SiamBAN) -> Constants:
    """Those that the checkpoint has."""
    names = {"penalty_k": "penalty_k", "window_influence": "window_influence", "lr": "tracker_lr"}
    return {name: module.hparams[theirs] for name, theirs in names.items()}


def small_tracker(root: Path) -> SiamBAN:
    """Trained for some seconds on drawn videos, which are written first."""
    seed_everything(0)
    write_tracking(root, train=6, test=4, frames=12, size=(120, 160), speed=3.0)
    crops = {"search_size": 191, "batch_size": 8, "pairs_per_epoch": 160, "val_videos": 0}
    data = LaSOTDataModule(str(root), in_memory=True, num_workers=0, **crops)
    network = {"depth": 18, "width": 8, "channels": 16, "levels": [2, 3], "search_size": 191, "normalize": True}
    module = SiamBAN(**network, first_distance=32.0, lr=0.05, warmup_epochs=1, warmup_lr=0.01, end_lr=0.005)
    quiet = {"logger": False, "enable_checkpointing": False, "default_root_dir": root.parent}
    Trainer(accelerator="cpu", max_epochs=4, gradient_clip_val=10.0, **quiet).fit(module, datamodule=data)
    return module


def main(words: Sequence[str] | None = None) -> None:
    """Search, and report both halves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt_path", nargs="?", help="of a trained SiamBAN")
    parser.add_argument("--root", help="folder of the benchmark")
    parser.add_argument("--benchmark", default="lasot", choices=sorted(READERS))
    parser.add_argument("--trials", type=int, default=12, help="those that --storage has already included")
    parser.add_argument("--frames", type=int, default=None, help="of each video the first so many alone")
    parser.add_argument("--seed", type=int, default=0, help="of the halves, and of a search without storage")
    parser.add_argument("--storage", default=None, help="of Optuna, such as sqlite:///tune.db")
    options = parser.parse_args(words)

    if options.trials < 1:
        parser.error(f"--trials {options.trials} must be at least 1")
    if (options.ckpt_path is None) != (options.root is None):
        parser.error("ckpt_path and --root go together: a trained tracker, and videos to search on")
    module: LightningModule
    if options.ckpt_path is None:
        options.root = Path(tempfile.mkdtemp(), "videos")
        module = small_tracker(options.root)
    else:
        module = Predictor.from_checkpoint(options.ckpt_path).module
    if not isinstance(module, SiamBAN):
        raise SystemExit(f"{options.ckpt_path} is no SiamBAN, but {type(module).__name__}")
    module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    data = TrackingBenchmarkDataModule(options.benchmark, options.root, frames=options.frames)
    data.setup("test")
    searched, kept = halves(data.evaluation_sequences(), options.seed)
    if not kept:
        raise SystemExit(f"--root {options.root}: one video cannot be halved; a search needs two at least")
    before = [score(module, half, own_constants(module), options.benchmark) for half in (searched, kept)]
    if np.isnan(before[0]):
        raise SystemExit(f"{options.benchmark}: no video is long enough for EAO; give more, or a larger --frames")
    print(f"{options.trials} trials on {len(searched)} videos; {len(kept)} are kept for the end", flush=True)
    best = tune(module, searched, options.benchmark, options.trials, options.seed, options.storage)
    print(f"{'':24}{'searched half':>15}{'other half':>15}")
    after = [score(module, half, best, options.benchmark) for half in (searched, kept)]
    for name, figures in {"before": before, "after": after}.items():
        print(f"{name:24}{figures[0]:15.3f}{figures[1]:15.3f}")
    given = {"penalty_k": "penalty_k", "window_influence": "window_influence", "lr": "tracker_lr"}
    print(" ".join(f"--model.{given[name]} {value:.6g}" for name, value in best.items()))


if __name__ == "__main__":
    main()
