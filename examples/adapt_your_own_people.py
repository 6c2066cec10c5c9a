"""Adapt a re-ID network to cameras of your own: your network, your loss, and a gallery ranked at the end.

Runs as it is, on drawn people, in a minute or two; with your own pictures in Market-1501's layout
(``bounding_box_train/0001_c1s1_000001_00.jpg``: person, camera; unknown persons may all be called 0001 in training),
leave the two ``write_`` lines out.
"""

import tempfile
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn

from callbacks import DirectTransfer, PseudoLabelClustering
from datamodules import Market1501DataModule
from datamodules.demo import write_duke_mtmc, write_market1501
from lit_methods import ADCluster
from lit_methods.ad_cluster.functional import cluster_centroids


def my_encoder() -> nn.Module:
    """Anything that makes (N, D) or (N, D, h, w) of pictures (N, 3, H, W)."""

    def stage(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())

    return nn.Sequential(stage(3, 24), stage(24, 48), stage(48, 96), stage(96, 128, stride=1))


class CompactClusters(ADCluster):
    """Also draws the features of a batch to the mean of their cluster."""

    def adaptation_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features, label = self.train_features(batch), batch["label"]
        parts = self.triplet(features, label)
        numbers = label.unique(return_inverse=True)[1]
        spread = (features - cluster_centroids(features, numbers)[numbers]).norm(dim=1).mean()
        return {"loss": parts["triplet_loss"] + 0.05 * spread, "spread": spread, **parts}


def main() -> None:
    """Train on the labelled source, adapt to the target, rank the target's gallery."""
    seed_everything(0)
    folder = Path(tempfile.mkdtemp())
    target, source = write_market1501(folder / "target"), write_duke_mtmc(folder / "source")
    data = Market1501DataModule(
        str(target),
        source_root=str(source),
        train_on="clusters",
        generated_per_id=0,  # no generator here; with one, add CameraStyleAugmentation behind the clustering
        height=64,
        width=32,
        p=8,
        k=4,
        source_k=4,
        num_workers=0,
    )
    module = CompactClusters(
        my_encoder(),
        num_classes=data.num_classes,
        source_epochs=30,
        source_lr=1e-3,
        lr=3e-3,
        head="bnneck",
        mean=data.mean,
        std=data.std,
        input_size=data.input_size,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=45,
        limit_val_batches=0,
        reload_dataloaders_every_n_epochs=1,  # labels change between epochs
        callbacks=[DirectTransfer(), PseudoLabelClustering(every_n_epochs=5, k1=12, k2=4, rho=0.02)],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=str(folder),
    )
    trainer.fit(module, datamodule=data)
    (figures,) = trainer.test(module, datamodule=data, verbose=False)
    direct = next(c for c in trainer.callbacks if isinstance(c, DirectTransfer)).summary()  # type: ignore[attr-defined]
    print(f"mAP {direct['test/mAP_direct']:.2f} directly, {figures['test/mAP']:.2f} adapted without labels")

    query = data.query_files[0]
    batches = module.prepare_inputs([query], gallery=str(target / "bounding_box_test"), top=3)
    with torch.no_grad():
        (found,) = module.eval().predict_step(next(iter(batches)), 0)
    print(query.name, "looks like", [Path(path).name for path in found["nearest"]])


if __name__ == "__main__":
    main()
