"""PseudoLabelClustering: when it clusters, what the epochs are trained on, and what happens where nothing is found."""

import pytest
import torch
from lightning.pytorch import Callback

from callbacks import CameraStyleAugmentation, DirectTransfer, PseudoLabelClustering
from callbacks.pseudo_label_clustering import ClusterListener
from datamodules import Market1501DataModule
from lit_methods import ADCluster, SourceReID
from lit_methods.ad_cluster.agreement import agreement

SIZE = {"height": 32, "width": 16, "num_workers": 0, "batch_size": 32}
CLUSTERS = {"train_on": "clusters", "p": 2, "k": 3, "generated_per_id": 1, "source_p": 3, "source_k": 2}
PAIR = {"generator_width": 4, "num_blocks": 1, "discriminator_width": 4, "num_layers": 3, "batch_size": 4}


class Watch(Callback):
    """What each epoch was trained on."""

    def __init__(self):
        self.labels, self.batches = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.labels.append(trainer.datamodule.pseudo_labels)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch))


class Given(PseudoLabelClustering):
    """Clusterings that are known beforehand."""

    def __init__(self, answers, **kwargs):
        super().__init__(**kwargs)
        self.answers, self.asked = answers, 0

    def cluster(self, features, source=None):
        self.asked += 1
        answer = self.answers[min(self.iteration, len(self.answers) - 1)]
        return torch.tensor(answer * (len(features) // len(answer))), 0.5


@pytest.fixture
def fit(market1501_root, duke_root, make_trainer):
    def run(clustering, *others, epochs=4, source_epochs=0, data=None, lr=1e-3, **trainer):
        roots = {"root": str(market1501_root), "source_root": str(duke_root)}
        data = data or Market1501DataModule(**roots, **CLUSTERS, **SIZE)
        torch.manual_seed(0)
        module = ADCluster("tiny", {"width": 4}, data.num_classes, source_epochs, input_size=[3, 32, 16], lr=lr)
        watch = Watch()
        quick = {"limit_val_batches": 0, "reload_dataloaders_every_n_epochs": 1, "max_epochs": epochs} | trainer
        made = make_trainer(callbacks=[*others, clustering, watch], **quick)
        made.fit(module, datamodule=data)
        return module, watch, made

    return run


PAIRS = [0, 0, 0, 1, 1, 1, 2, 2, 2]  # pictures of one person in one camera, in the order of their names


def test_labels_change_every_so_many_epochs(fit):
    other = [1, 1, 1, 0, 0, 0, -1, -1, -1]
    clustering = Given([PAIRS, other], every_n_epochs=2)
    _, watch, _ = fit(clustering, epochs=5)
    assert clustering.iteration == clustering.asked == 3
    first, second = (torch.tensor(answer * 8) for answer in (PAIRS, other))
    assert [torch.equal(labels, first) for labels in watch.labels] == [True, True, False, False, False]
    assert [torch.equal(labels, second) for labels in watch.labels] == [False, False, True, True, True]
    for epoch, batch in watch.batches:
        expected = (first, second)[epoch >= 2]
        assert torch.equal(batch["label"].unique().bincount().sum(), torch.tensor(2))
        raw = expected[batch["index"]]
        assert (raw >= 0).all()  # outliers are left out
        assert len(torch.stack([raw, batch["label"]]).unique(dim=1).T) == 2  # the labels are those of the clusters


def test_the_source_is_trained_on_first(fit):
    clustering = Given([PAIRS], every_n_epochs=1)
    module, watch, trainer = fit(clustering, epochs=4, source_epochs=2)
    assert [labels is None for labels in watch.labels] == [True, True, False, False]
    assert clustering.asked == 2
    assert module.adapting
    assert type(trainer.optimizers[0]).__name__ == "SGD"
    assert all("pid" in batch for epoch, batch in watch.batches if epoch < 2)


def test_true_persons_are_looked_at_for_reports_alone(fit, market1501_root, monkeypatch):
    runs = []
    for blind in (False, True):
        data = Market1501DataModule(str(market1501_root), **CLUSTERS, **SIZE)
        if blind:  # whoever needed them to train would fail
            monkeypatch.setattr(type(data), "true_train_ids", lambda self: None)
        clustering = PseudoLabelClustering(every_n_epochs=1, rho=0.02, k1=8, k2=3)
        module, _, _ = fit(clustering, epochs=2, data=data)
        runs.append((module.state_dict(), clustering))
    (seeing, told), (blind_weights, untold) = runs
    assert all(torch.equal(value, blind_weights[name]) for name, value in seeing.items())
    assert told.summary()["cluster/purity"] > 0
    assert "cluster/purity" not in untold.summary()
    assert torch.equal(told.labels, untold.labels)


def test_eps_is_kept_or_found_each_time(fit):
    for update, constant in (("first", True), ("every", False)):
        clustering = PseudoLabelClustering(every_n_epochs=1, rho=0.02, k1=8, k2=3, eps_update=update)
        fit(clustering, epochs=3, lr=0.05)
        found = {row["eps"] for row in clustering.history}
        assert (len(found) == 1) is constant, update


def test_the_source_distance_needs_a_source_and_changes_the_clusters(fit, market1501_root):
    with_source = PseudoLabelClustering(every_n_epochs=1, rho=0.02, k1=8, k2=3, source_weight=0.1)
    without = PseudoLabelClustering(every_n_epochs=1, rho=0.02, k1=8, k2=3)
    fit(with_source, epochs=1)
    fit(without, epochs=1)
    assert with_source.eps != without.eps
    data = Market1501DataModule(str(market1501_root), **CLUSTERS, **SIZE)
    with pytest.raises(ValueError, match=r"source_weight=0\.1 needs pictures of the source"):
        fit(PseudoLabelClustering(source_weight=0.1), data=data)


@pytest.mark.parametrize("nothing", [[0] * 9, [-1] * 9], ids=["one cluster", "outliers alone"])
def test_where_nothing_is_found_the_previous_labels_stay(fit, nothing):
    clustering = Given([PAIRS, nothing, PAIRS], every_n_epochs=1)
    with pytest.warns(UserWarning, match="the previous labels stay"):
        _, watch, _ = fit(clustering, epochs=3)
    assert all(torch.equal(labels, torch.tensor(PAIRS * 8)) for labels in watch.labels)
    assert [row["kept_previous"] for row in clustering.history] == [0, 1, 0]
    assert [row["clusters"] for row in clustering.history] == [3, len({*nothing} - {-1}), 3]  # as it was found
    assert clustering.summary()["cluster/kept_previous"] == 1


@pytest.mark.parametrize("nothing", [[0] * 9, [-1] * 9], ids=["one cluster", "outliers alone"])
def test_without_previous_labels_nothing_is_learnt_until_there_are_clusters(fit, nothing):
    clustering = Given([nothing, PAIRS], every_n_epochs=2)
    before = ADCluster("tiny", {"width": 4}, 0, input_size=[3, 32, 16]).state_dict()
    with pytest.warns(UserWarning, match="nothing is learnt until the next clustering"):
        module, watch, _ = fit(clustering, epochs=2)
    assert [len(batch["label"]) for _, batch in watch.batches] == [0, 0]
    assert {*before} == {*module.state_dict()}
    clustering = Given([nothing, PAIRS], every_n_epochs=1)
    with pytest.warns(UserWarning, match="nothing is learnt"):
        _, watch, _ = fit(clustering, epochs=2)
    assert [epoch for epoch, batch in watch.batches if len(batch["label"])] == [1, 1]


def test_a_second_fit_begins_anew(fit):
    """The same callbacks and the same module, in a Trainer of their own."""
    clustering, augmentation = Given([PAIRS], every_n_epochs=1), CameraStyleAugmentation(gan_steps=2, **PAIR)
    module, _, trainer = fit(clustering, augmentation, epochs=2, source_epochs=1)
    first = clustering.labels
    trainer.test(module, datamodule=trainer.datamodule, verbose=False)
    again = _trainer_of(trainer, [augmentation, clustering, watch := Watch()])
    again.fit(module, datamodule=trainer.datamodule)
    assert [labels is None for labels in watch.labels] == [True, False]
    assert clustering.iteration == len(clustering.history) == augmentation.part == 1
    assert torch.equal(clustering.labels, first)


def _trainer_of(trainer, callbacks):
    return type(trainer)(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=2,
        enable_model_summary=False, limit_val_batches=0, reload_dataloaders_every_n_epochs=1, callbacks=callbacks,
        default_root_dir=trainer.default_root_dir,
    )  # fmt: skip


def test_the_eps_of_clusters_that_nobody_took_is_not_kept(fit):
    class Settings(Given):
        def cluster(self, features, source=None):
            labels, _ = super().cluster(features, source)
            return labels, 0.1 * (self.asked + 1)

    clustering = Settings([[-1] * 9, PAIRS], every_n_epochs=1)
    with pytest.warns(UserWarning, match="nothing is learnt"):
        fit(clustering, epochs=1)
    assert clustering.eps is None
    with pytest.warns(UserWarning, match="nothing is learnt"):
        fit(clustering, epochs=2)
    assert clustering.eps == pytest.approx(0.1 * (clustering.asked + 1))


def test_listeners_hear_of_each_clustering_before_it_is_trained_on(fit):
    class Listener(ClusterListener):
        heard = []

        def on_clusters(self, trainer, pl_module, clusters):
            self.heard.append(
                (clusters.iteration, trainer.global_step, clusters.features.shape, clusters.centroids.shape)
            )

    fit(Given([PAIRS], every_n_epochs=2), Listener(), epochs=4)
    assert Listener.heard == [(1, 0, (72, 16), (3, 16)), (2, 4, (72, 16), (3, 16))]


@pytest.mark.parametrize(("error", "message"), [(ValueError("NaN"), "^NaN"), (MemoryError("13k"), "MemoryError: 13k")])
def test_an_error_of_the_clustering_ends_the_fit(fit, error, message):
    class Bad(PseudoLabelClustering):
        def cluster(self, features, source=None):
            raise error

    with pytest.raises(ValueError, match=message):
        fit(Bad())


def test_figures_are_logged_once_per_epoch(fit):
    _, _, trainer = fit(Given([PAIRS], every_n_epochs=1), epochs=2)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("cluster/")}
    assert logged["cluster/count"] == 3
    assert logged["cluster/iteration"] == 2
    assert logged["cluster/outliers"] == 0
    assert 0 < logged["cluster/purity"] < 0.5  # the first three clusters are all persons


def test_purity_and_mutual_information():
    labels, truth = torch.tensor([0, 0, 0, 1, 1, -1]), torch.tensor([5, 5, 9, 9, 9, 5])
    purity, nmi = agreement(labels, truth)
    assert purity == pytest.approx(4 / 5)
    assert 0 < nmi < 1
    assert agreement(truth, truth) == (1.0, pytest.approx(1.0))
    assert agreement(torch.tensor([-1, -1]), torch.tensor([0, 1])) == (None, None)
    with pytest.raises(ValueError, match="one length"):
        agreement(labels, truth[:-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs=0 must be at least 1"),
        ({"rho": 0.0}, r"rho=0.0 must lie in \(0, 1\]"),
        ({"min_samples": 0}, "min_samples=0 must be at least 1"),
        ({"source_weight": 1.0}, "source_weight=1.0"),
        ({"eps_update": "never"}, "eps_update='never' must be 'first' or 'every'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabelClustering(**arguments)


def test_what_cannot_work_is_refused_before_the_fit(fit, make_trainer, market1501_root):
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs=1"):
        fit(PseudoLabelClustering(), reload_dataloaders_every_n_epochs=0)
    data = Market1501DataModule(str(market1501_root), train_on="ids", **SIZE)
    trainer = make_trainer(callbacks=[PseudoLabelClustering()], reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ValueError, match="is for ADCluster, not for SourceReID"):
        trainer.fit(SourceReID("tiny", num_classes=8, input_size=[3, 32, 16]), datamodule=data)


def test_direct_transfer_is_measured_once_and_remembered(fit):
    direct = DirectTransfer()
    fit(Given([PAIRS], every_n_epochs=1), direct, epochs=2, lr=0.5)
    figures = direct.summary()
    assert {*figures} == {f"test/{name}_direct" for name in ("mAP", "mINP", "rank1", "rank5", "rank10")}
    assert 0 < figures["test/mAP_direct"] < 1
    again = DirectTransfer()
    again.load_state_dict(direct.state_dict())
    assert again.summary() == figures


# --- drawn pictures --------------------------------------------------------------------------------------------------


def test_pictures_with_a_style_are_drawn_before_their_step(fit):
    augmentation = CameraStyleAugmentation(gan_steps=2, **PAIR)
    _, watch, trainer = fit(Given([PAIRS], every_n_epochs=1), augmentation, epochs=1)
    data = trainer.datamodule
    (_, batch), *_ = watch.batches
    drawn = batch["style"] >= 0
    assert int(drawn.sum()) == 2
    assert (batch["style"][drawn] != batch["camid"][drawn]).all()
    loader = data._cluster_loader(data._train, data._labels)
    real = data.on_after_batch_transfer(next(iter(loader)), 0)
    assert torch.equal(real["index"], batch["index"])
    assert torch.equal(real["image"][~drawn], batch["image"][~drawn])
    expected = augmentation.translation.translate(real["image"][drawn], real["style"][drawn])
    torch.testing.assert_close(batch["image"][drawn], expected)


def test_the_encoder_is_left_alone_by_the_generators_steps(fit):
    """Bit for bit, statistics of batch norm included; and the generator by the encoder's."""
    seen = []

    class Look(CameraStyleAugmentation):
        def on_clusters(self, trainer, pl_module, clusters):
            before = {name: value.clone() for name, value in pl_module.state_dict().items()}
            modes = [part.training for part in pl_module.modules()]
            super().on_clusters(trainer, pl_module, clusters)
            seen.append(all(torch.equal(value, before[name]) for name, value in pl_module.state_dict().items()))
            seen.append(modes == [part.training for part in pl_module.modules()])
            seen.append(all(p.grad is None or not p.grad.any() for p in pl_module.parameters()))
            self.after = {name: value.clone() for name, value in self.translation.state_dict().items()}

    augmentation = Look(gan_steps=6, n_critic=2, w_div=5.0, **PAIR)
    fit(Given([PAIRS], every_n_epochs=2), augmentation, epochs=2, lr=0.1)
    assert seen == [True] * 3
    assert all(
        torch.equal(value, augmentation.after[name]) for name, value in augmentation.translation.state_dict().items()
    )
    assert augmentation.figures["augment/g_diversity"] > 0
    assert "augment/g_diversity" not in _figures(fit, w_div=0.0)


def _figures(fit, **arguments):
    augmentation = CameraStyleAugmentation(gan_steps=2, n_critic=1, **arguments, **PAIR)
    fit(Given([PAIRS], every_n_epochs=1), augmentation, epochs=1)
    return augmentation.figures


@pytest.mark.parametrize(
    ("gan", "message"), [("nowhere.ckpt", "does not exist"), ("own", "is a checkpoint of ADCluster")]
)
def test_a_generator_from_another_file_is_refused(fit, gan, message, tmp_path, make_trainer):
    if gan == "own":
        trainer, gan = make_trainer(), str(tmp_path / "own.ckpt")
        trainer.strategy.connect(ADCluster("tiny", input_size=[3, 32, 16]))
        trainer.save_checkpoint(gan)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        fit(PseudoLabelClustering(), CameraStyleAugmentation(gan=gan))


def test_no_steps_leave_the_generator_as_it_is(fit):
    augmentation = CameraStyleAugmentation(gan_steps=0, **PAIR)
    fit(Given([PAIRS], every_n_epochs=1), augmentation, epochs=2)
    assert augmentation.figures == {}
    assert augmentation.done == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gan_steps": -1}, "gan_steps=-1 must not be negative"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"lam": 0.0}, "must be positive"),
        ({"gan": "a.ckpt", "pretrain_steps": 3}, "pretrain_steps=3 are for an untrained generator"),
    ],
)
def test_bad_arguments_of_the_augmentation_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CameraStyleAugmentation(**arguments)


def test_without_pictures_to_draw_no_generator_is_trained(fit, market1501_root):
    runs = []
    for others in ((), (CameraStyleAugmentation(gan_steps=3, **PAIR),)):
        data = Market1501DataModule(str(market1501_root), **CLUSTERS | {"generated_per_id": 0}, **SIZE)
        module, _, _ = fit(Given([PAIRS], every_n_epochs=1), *others, data=data, epochs=1)
        runs.append(module.state_dict())
    assert others[0].state_dict() == {}
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())  # clustering alone


def test_the_augmentation_needs_clusters(market1501_root, make_trainer):
    trainer = make_trainer(callbacks=[CameraStyleAugmentation(**PAIR)], reload_dataloaders_every_n_epochs=1)
    data = Market1501DataModule(str(market1501_root), **CLUSTERS, **SIZE)
    with pytest.raises(ValueError, match="PseudoLabelClustering is missing"):
        trainer.fit(ADCluster("tiny", input_size=[3, 32, 16]), datamodule=data)
