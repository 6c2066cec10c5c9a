"""Market-1501 and DukeMTMC-reID, or sets of one's own in their layout."""

from datamodules.identity_batches import AugmentedPKSampler as AugmentedPKSampler, PKSampler as PKSampler
from datamodules.reid import ReIDDataModule
from datamodules.reid_files import DUKE, MARKET


class Market1501DataModule(ReIDDataModule):
    """Market-1501 (Zheng et al., ICCV 2015): 1501 persons in 6 cameras.

    Arguments, batches and ``train_on`` are those of :class:`~datamodules.reid.ReIDDataModule`. Names of files are
    ``0002_c1s1_000451_03.jpg``: person (-1 is junk, 0000 a distractor), camera, sequence, frame, box. With
    ``lr_query`` it is LR-Market (ours): down-sampled queries beside the clean ones; ``train_on="branches"`` trains on
    such pictures.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_market1501
        >>> with tempfile.TemporaryDirectory() as root:
        ...     root = str(write_market1501(root, train_ids=2, test_ids=2))
        ...     data = Market1501DataModule(root, p=2, k=2, height=64, width=32, num_workers=0)
        ...     data.setup("fit")
        ...     data.num_classes, data.num_cameras, next(iter(data.train_dataloader()))["image"].shape
        (2, 3, torch.Size([4, 3, 64, 32]))
    """

    layout = MARKET


class DukeMTMCDataModule(ReIDDataModule):
    """DukeMTMC-reID (Ristani et al., 2016; Zheng et al., ICCV 2017): 1404 persons in 8 cameras.

    Arguments, batches and ``train_on`` are those of :class:`~datamodules.reid.ReIDDataModule`. Names of files are
    ``0005_c2_f0046985.jpg``: person, camera, frame; pictures have sizes of their own. Its creators withdrew the set;
    this reads a copy that you have.

    Example:
        >>> import tempfile
        >>> from datamodules.demo import write_duke_mtmc
        >>> with tempfile.TemporaryDirectory() as root:
        ...     root = str(write_duke_mtmc(root, train_ids=2, test_ids=2))
        ...     data = DukeMTMCDataModule(root, height=64, width=32, num_workers=0)
        ...     data.setup("test")
        ...     batch = next(iter(data.test_dataloader()))
        >>> batch["pid"].tolist()[:4], batch["camid"].tolist()[:4], batch["is_query"].tolist()[:4]
        ([3, 3, 3, 3], [0, 0, 0, 1], [True, False, False, True])
    """

    layout = DUKE
