"""A method, data and a callback small enough to run the whole command line in milliseconds."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, StepLR
from torch.utils.data import DataLoader, Dataset, Sampler

from callbacks.surgery import forget_old_network


class ToyNet(nn.Module):
    """One linear layer.

    Args:
        width: outputs of the layer.
    """

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.width = width


class ToyMethod(LightningModule):
    """A linear classifier whose validation score follows a script.

    Args:
        num_classes: outputs.
        lr: learning rate.
        schedule: how the rate falls.
        mean: what to subtract from the inputs.
        class_names: for people.
        scores: ``val/score`` of each epoch.
        net: a nested object.
        hidden: width of a second layer, 0 for none.
        fail_at: the training batch in which the module's own code breaks; -1 is never, -2 the constructor.
    """

    def __init__(
        self,
        num_classes: int = 2,
        lr: float = 0.1,
        schedule: Literal["none", "step", "lambda"] = "step",
        mean: list[float] | None = None,
        class_names: list[str] | None = None,
        scores: list[float] | None = None,
        net: ToyNet | None = None,
        hidden: int = 0,
        fail_at: int = -1,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        if fail_at == -2:
            self.missing()  # a fault of the code
        self.save_hyperparameters(ignore=["net"])
        outputs = nn.Linear(hidden or 4, num_classes)
        self.layer: nn.Module = nn.Sequential(nn.Linear(4, hidden), outputs) if hidden else outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == self.hparams["fail_at"]:
            raise ValueError("a fault in the method's own code")
        loss = nn.functional.cross_entropy(self(batch["x"]), batch["label"])
        self.log("train/loss", loss, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        scores = self.hparams["scores"]
        score = scores[min(self.current_epoch, len(scores) - 1)] if scores else self._accuracy(batch)
        self.log("val/score", score, batch_size=len(batch["label"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/score", self._accuracy(batch), batch_size=len(batch["label"]))
        self.log("test/weight", float(next(self.parameters()).detach().sum()), batch_size=len(batch["label"]))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> list[dict[str, Any]]:
        x = batch["x"] if "x" in batch else batch["image"].mean((2, 3))[:, [0, 1, 2, 0]]
        scores, labels = self(x).softmax(1).topk(2)
        return [{"labels": n.tolist(), "scores": s.tolist()} for s, n in zip(scores, labels, strict=True)]

    def draw(self, image: Any, prediction: dict[str, Any]) -> Any:
        return image

    def _accuracy(self, batch: dict[str, Tensor]) -> float:
        return float((self(batch["x"]).argmax(1) == batch["label"]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        if self.hparams["schedule"] == "none":
            return optimizer
        if self.hparams["schedule"] == "lambda":
            return [optimizer], [LambdaLR(optimizer, lambda epoch: 0.5**epoch)]
        return [optimizer], [StepLR(optimizer, 1, 0.5)]

    def summary(self) -> dict[str, Any]:
        return {"toy/rate": self.hparams["lr"], "toy/name": "linear"}


class ToyDataset(Dataset):
    def __init__(self, length: int) -> None:
        generator = torch.Generator().manual_seed(length)
        self.x = torch.randn(length, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "label": (self.x[index].sum() > 0).long()}


class ToyOrder(Sampler):
    """An order that depends on the epoch alone."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter(torch.randperm(self.length, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return self.length


class ToyLoader(DataLoader):
    """Goes on in the middle of an epoch."""

    done = skip = 0

    def __iter__(self) -> Any:
        first, self.skip = self.skip, 0
        for self.done, batch in enumerate(super().__iter__(), 1):
            if self.done > first:
                yield batch
        self.done = 0

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skip = state_dict["done"] % len(self)


class ToyData(LightningDataModule):
    """Points in four dimensions.

    Args:
        root: a folder that must exist, where one is given.
        batch_size: points in a batch.
    """

    num_classes = 3
    mean = [0.5, 0.5]

    def __init__(self, root: str | None = None, batch_size: int = 4) -> None:
        super().__init__()
        self.root, self.batch_size = root, batch_size
        self.class_names = ["below", "above", "beside"]

    def prepare_data(self) -> None:
        if self.root is not None:
            raise FileNotFoundError(f"no points in root={self.root!r}")

    def _loader(self, length: int, train: bool = False) -> DataLoader:
        dataset = ToyDataset(length)
        if train:
            return ToyLoader(dataset, batch_size=self.batch_size, sampler=ToyOrder(length))
        return DataLoader(dataset, batch_size=self.batch_size)

    def train_dataloader(self) -> DataLoader:
        return self._loader(20, True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(8)

    def test_dataloader(self) -> DataLoader:
        return self._loader(12)

    def predict_dataloader(self) -> DataLoader:
        return self._loader(5)


class ToyCallback(Callback):
    """Keeps a number.

    Args:
        keep: a share between 0 and 1.
        at_epoch: when to pretend that the network changed its shape; -1 is never.
    """

    def __init__(self, keep: float = 0.5, at_epoch: int = -1) -> None:
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {keep}")
        self.keep, self.at_epoch = keep, at_epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.at_epoch and batch_idx == 0:
            forget_old_network(trainer, pl_module)

    def summary(self) -> dict[str, Any]:
        return {"toy/keep": self.keep}


class ToyPickyCallback(Callback):
    """Needs an argument.

    Args:
        name: has no default.
    """

    def __init__(self, name: str) -> None:
        self.name = name
