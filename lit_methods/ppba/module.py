"""PPBA: a classifier, trained here or elsewhere, and a black-box attack on it as its test."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_methods.base_checkpoint import CheckpointStart, described, read_trained
from lit_methods.functional.modes import evaluating
from lit_methods.inference import as_image, fit_size
from lit_methods.ppba.attack import Attack, AttackResult
from lit_methods.ppba.build import AttackPlan
from lit_methods.ppba.eight_bits import levels
from lit_methods.ppba.figures import AttackFigures
from lit_methods.ppba.identity import content_ids, fingerprint
from lit_methods.ppba.ledger import Ledger, merge
from lit_methods.ppba.pictures import triplet
from lit_methods.ppba.random_walk import PPBAAttack

GIVEN_IN_CODE = "given in code"  # what a checkpoint has in the place of an attack object
FILMED = 4  # images of the first batch whose path is kept, in case that some need no attack


class PPBA(CheckpointStart):
    """A classifier that is attacked with few queries (PPBA, arXiv 2005.03837).

    Training is that of ``ImageClassifier``, for the victim of a recipe; with ``base_checkpoint`` nothing is trained.
    The test attacks every image that is classified correctly, counts every query, and writes down each answer as it
    comes (``ledger.jsonl`` and ``ledger.answers`` in the run's directory): a test that was killed goes on there without
    asking again. ``predict_step`` attacks the user's own pictures, away from whatever the network sees in them.

    Logs ``test/success_rate``, ``test/mean_queries`` and ``test/median_queries`` (of successes),
    ``test/mean_queries_all`` (failures with what they spent), ``test/auc`` (of the success curve, in [0, 1]),
    ``test/l2`` (of successes), ``test/success_rate_uint8`` (what is left after rounding to 8 bits), ``test/top1``
    (clean), ``test/adversarial_top1``, and how many images were ``test/attacked``, ``test/skipped`` (wrong from the
    start) and ``test/failed`` (no usable scores).

    ``predict_step`` gives per image ``id`` (as in the ledger), ``label`` and ``name`` (what the network saw),
    ``adversarial_label`` and ``adversarial_name``, ``success``, ``success_uint8``, ``queries``, ``l2``, and
    ``adversarial``, the picture (3, H, W) uint8. Inside a fit or a test it gives what ``ImageClassifier`` gives, for
    ``PredictionLogger``.

    Args:
        model: a network that takes (B, 3, H, W) and gives logits, or a key of ``BACKBONES``.
        attack: ``"ppba"``, ``"nes"``, ``"nes_lf"``, ``"bandits"``, ``"bandits_lf"`` (``_lf`` searches among low
            frequencies) or ``"simba"``; in code also an attack object, which brings its own settings.
        num_classes: number of classes.
        mean: per channel, for images in [0, 1]; ``None`` hands pixels on as they are.
        std: per channel; given together with ``mean``.
        input_size: (C, H, W) that the network is fed with; ``predict`` resizes to it.
        class_names: names of the classes, for people.
        base_checkpoint: trained weights, as in ``ImageClassifier``. A checkpoint of any classifier of ours, pruned or
            not, brings its network, ``mean``, ``std``, ``input_size`` and ``class_names`` along; ``model`` is then left
            aside, unless it is an object.
        eps: radius of the ball; ``None`` is 5 for images of 200 pixels and more, 1 for smaller ones.
        max_queries: per image, never exceeded.
        target: class that is to be reached, or ``"random"``, drawn per image; ``None``: away from the true one.
        attack_args: further arguments of the attack, such as ``{"rho": 0.01}``; PPBA's ``rho`` is ``0.002 * eps`` and
            Bandits' ``tile`` half the side of small images unless given.
        low_dim: coefficients of the low-frequency space; ``None`` for this and the next two goes by the image size.
        freq_dim: side of the lowest shell.
        stride: width of the other shells.
        attack_seed: of the random streams, together with the image ids.
        pad_batch: ask about a fixed number of images at once, so that an image ends the same in any company.
        compare_fixed: attack a second time with fixed probabilities, and log ``test/success_rate_fixed`` and
            ``test/mean_queries_fixed``; for ``"ppba"``.
        lr: of the victim's training; the next three, too.
        weight_decay: of SGD.
        schedule: ``"multistep"`` or ``"cosine"``.
        milestones: epochs, for ``"multistep"``.

    Raises:
        ValueError: an argument is out of range, or the weights do not fit the network.
        FileNotFoundError: ``base_checkpoint`` does not exist.

    Source:
        attack: ``PPBAAttack`` and its neighbours say what differs from the official code. Labels are the true ones in a
        test, the network's own in ``predict``; the official code takes its own always.

    Example:
        >>> module = PPBA("resnet20", max_queries=20, attack_args={"rho": 0.1})
        >>> result = module.attack_images(torch.rand(2, 3, 32, 32), torch.tensor([3, 3]))
        >>> bool((result.queries <= 20).all())
        True
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet20",
        attack: str | Attack = "ppba",
        num_classes: int = 10,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        class_names: list[str] | None = None,
        base_checkpoint: str | None = None,
        eps: float | None = None,
        max_queries: int = 2000,
        target: int | Literal["random"] | None = None,
        attack_args: dict[str, Any] | None = None,
        low_dim: int | None = None,
        freq_dim: int | None = None,
        stride: int | None = None,
        attack_seed: int = 0,
        pad_batch: bool = False,
        compare_fixed: bool = False,
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        schedule: Literal["multistep", "cosine"] = "multistep",
        milestones: list[int] | None = None,
    ) -> None:
        trained = read_trained(base_checkpoint, "PPBA")
        if trained is not None:
            model, num_classes = trained.network(model), trained.num_classes  # type: ignore[assignment]
            input_size = input_size or trained.settings.get("input_size")
        super().__init__(
            backbone=described(model) if isinstance(model, dict) else model,
            num_classes=num_classes,
            mean=mean,
            std=std,
            input_size=input_size,
            class_names=class_names,
            base_checkpoint=base_checkpoint if trained is None else None,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            milestones=milestones,
        )
        if trained is not None:
            self.start_from_trained(trained)
        if isinstance(model, str | dict):
            self.hparams["model"] = model
        self.hparams["base_checkpoint"] = base_checkpoint
        if isinstance(attack, Attack):
            del self.hparams["attack"]  # an object, like a network
        elif attack == GIVEN_IN_CODE:
            raise ValueError("attack: the checkpoint's was an object; give it: load_from_checkpoint(path, attack=...)")
        self._plan = AttackPlan(
            attack, eps, max_queries, target, attack_args or {}, low_dim, freq_dim, stride, attack_seed, pad_batch
        )
        checked = self._plan.check(num_classes, input_size)
        if compare_fixed and (not isinstance(checked, PPBAAttack) or attack is checked):
            raise ValueError(f"compare_fixed=True needs attack='ppba', whose probabilities it fixes, not {attack!r}")
        self._attacks: dict[tuple[int, bool], Attack] = {}
        self._ledgers: dict[bool, Ledger] = {}
        self.attack_figures = AttackFigures(checked.max_queries, compare_fixed)
        self.on_attack_step: Callable[[int, int], None] | None = None  # a callback may look in before each iteration

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in ``ImageClassifier``; an attack object is named as missing."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"].setdefault("attack", GIVEN_IN_CODE)

    # -- the attack ---------------------------------------------------------------------------------------------------

    def attack_for(self, side: int, fixed: bool = False) -> Attack:
        """The attack on images of a size.

        Args:
            side: of the images.
            fixed: PPBA's walk with fixed probabilities.
        """
        if (side, fixed) not in self._attacks:
            self._attacks[side, fixed] = self._plan.build(side, **({"count_update": "fixed"} if fixed else {}))
        return self._attacks[side, fixed]

    def attack_images(
        self,
        images: Tensor,
        labels: Tensor,
        image_ids: Tensor | None = None,
        *,
        fixed: bool = False,
        films: bool = False,
    ) -> AttackResult:
        """Attack a batch; in a running test or prediction with its ledger.

        Args:
            images: (N, 3, S, S) in [0, 1].
            labels: (N,) true classes.
            image_ids: (N,) int64; ``None`` takes them from the pixels.
            fixed: PPBA's walk with fixed probabilities.
            films: keep the paths of the first few images.
        """
        images = images.to(torch.promote_types(images.dtype, torch.float32))  # a move is less than half precision sees
        ids = content_ids(images) if image_ids is None else image_ids
        attack = self.attack_for(images.shape[-1], fixed)
        goals: dict[str, Any] = {"labels": labels}
        if attack.targeted:
            goals = {"labels": self._plan.targets(labels, ids, self.hparams["num_classes"]), "true_labels": labels}
        with torch.autocast(images.device.type, enabled=False):
            return attack(
                self._scores,
                images,
                image_ids=ids,
                ledger=self._ledgers.get(fixed) if self._stage is not None else None,  # one that failed left its own
                films=ids[:FILMED].tolist() if films else (),
                on_step=self.on_attack_step,
                **goals,
            )

    @torch.no_grad()
    def _scores(self, images: Tensor) -> Tensor:
        """Logits in the Trainer's precision, while the attack around them has its own."""
        with evaluating(self), self.trainer.precision_plugin.forward_context() if self._trainer else nullcontext():
            return self(images)

    # -- the test -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuse data with other classes, and train nothing where trained weights were given."""
        super().setup(stage)
        if stage == "fit" and self.hparams["base_checkpoint"] is not None:
            self.trainer.fit_loop.max_epochs = 0
            rank_zero_info("model.base_checkpoint is given: nothing is trained")

    def on_test_start(self) -> None:
        """Open the ledgers."""
        self._warn_if_untrained()
        self._open("ledger.jsonl")
        if self.hparams["compare_fixed"]:
            self._open("ledger_fixed.jsonl", fixed=True)

    def on_predict_start(self) -> None:
        """Open the ledger."""
        self._warn_if_untrained()
        self._open("ledger.jsonl")

    def _open(self, name: str, fixed: bool = False) -> None:
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            context = {"network": fingerprint(self), "precision": str(self.trainer.precision)}
            self._ledgers[fixed] = Ledger(Path(self.trainer.default_root_dir, name), context, self.trainer.global_rank)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any] | None:  # type: ignore[override]
        """Attack the batch; gives ``attack`` and perhaps ``fixed``, results for callbacks."""
        images, labels, results = batch["image"], batch["label"], {}
        if len(labels):  # else this process has no image at all, and takes part in the sums all the same
            ids = batch.get("index")
            results["attack"] = self.attack_images(images, labels, ids, films=batch_idx == 0)
            self.attack_figures.update(results["attack"], labels)
            if self.hparams["compare_fixed"]:
                results["fixed"] = self.attack_images(images, labels, ids, fixed=True)
                self.attack_figures.update_fixed(results["fixed"])
        for name, metric in self.attack_figures.metrics.items():
            self.log(f"test/{name}", metric, on_step=False, on_epoch=True, batch_size=max(1, len(labels)))
        return results or None

    def on_test_epoch_end(self) -> None:
        """Make one ledger of those of all processes."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            for ledger in self._ledgers.values():
                merge(ledger.path)
        self.trainer.strategy.barrier()

    on_predict_epoch_end = on_test_epoch_end

    def teardown(self, stage: str) -> None:
        """Close the ledgers; one that an error left open goes with the module, each of its lines is on the disk."""
        for ledger in self._ledgers.values():
            ledger.close()
        self._ledgers = {}

    def summary(self) -> dict[str, float | str]:
        """Which attack it was, for ``summary.json``."""
        for attack in self._attacks.values():
            settings = {name: value for name, value in attack.settings().items() if value is not None}
            return {"attack/settings": ", ".join(f"{name}={value}" for name, value in settings.items())}
        return {}

    # -- the user's own pictures --------------------------------------------------------------------------------------

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        """Attack pictures away from what the network sees in them."""
        if self._stage not in (None, RunningStage.PREDICTING):
            return super().predict_step(batch, batch_idx)
        labels = self._scores(batch["image"]).argmax(1)
        result = self.attack_images(batch["image"], labels, batch.get("index"))
        preds = result.preds.tolist()
        columns = {
            "id": result.ids.tolist(),
            "label": labels.tolist(),
            "name": map(self.class_name, labels.tolist()),
            "adversarial_label": preds,
            "adversarial_name": map(self.class_name, preds),
            "success": result.success.tolist(),
            "success_uint8": result.success_uint8.tolist(),
            "queries": result.queries.tolist(),
            "l2": result.l2.tolist(),
            "adversarial": levels(result.adv).cpu(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def draw(self, image: np.ndarray, prediction: dict[str, Any]) -> np.ndarray:
        """The picture, what the attack changed, and both together, with what the network sees.

        Args:
            image: (H, W, 3) uint8 RGB; shown as the network is fed with it.
            prediction: one dict of ``predict_step``; without ``adversarial`` it is drawn as in ``ImageClassifier``.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        if "adversarial" not in prediction:
            return super().draw(image, prediction)
        adversarial = prediction["adversarial"]
        clean = levels(fit_size(as_image(np.array(image)), adversarial.shape))
        before, after = (picture.permute(1, 2, 0).numpy() for picture in (clean, adversarial))
        names = prediction["name"], prediction["adversarial_name"]
        return triplet(before, after, *names, prediction["queries"], prediction["success"])
