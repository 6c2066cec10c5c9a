"""Re-ID data of a test: data modules on small sets, ready to use."""

from datamodules import Market1501DataModule

SMALL = {"height": 32, "width": 16, "p": 4, "k": 4, "source_p": 3, "source_k": 2, "batch_size": 16, "num_workers": 0}


def ready(root, *stages, cls=Market1501DataModule, **options):
    data = cls(str(root), **SMALL | options)
    data.prepare_data()
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def clusters(root, source=None, **options):
    options = {"train_on": "clusters", "generated_per_id": 1} | options
    return ready(root, "fit", source_root=None if source is None else str(source), **options)


def kinds(batch):
    return {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}
