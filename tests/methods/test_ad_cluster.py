"""The modules of AD-Cluster: what they learn from, refuse, save, predict and export."""

import copy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lit_methods import ADCluster, CameraStarGAN, PersonRetrieval, Predictor, SourceReID
from lit_methods.ad_cluster.losses import batch_hard_triplet
from lit_methods.ad_cluster.pictures import RIGHT, WRONG, ranked_list
from lit_methods.functional.archives import load_plain

SMALL = {"encoder": "tiny", "encoder_args": {"width": 4}, "input_size": [3, 32, 16]}
PAIR = {"generator_width": 4, "num_blocks": 1, "discriminator_width": 4, "num_layers": 3, "input_size": [3, 32, 16]}


def batch(ids=3, k=4, **more):
    """Pictures of a colour of its own for each identity."""
    label = torch.arange(ids).repeat_interleave(k)
    colour = torch.rand(ids, 3)[label][:, :, None, None]
    image = (colour + 0.1 * torch.rand(ids * k, 3, 32, 16)).clamp(0, 1)
    return {"image": image, "label": label, "erased": torch.zeros(ids * k, 4, dtype=torch.int64), **more}


def attached(module, make_trainer):
    """A module whose log goes nowhere."""
    module.trainer = make_trainer()
    module.log = lambda *args, **kwargs: None
    return module


def test_a_source_batch_is_overfitted(make_trainer):
    module = attached(SourceReID(**SMALL, num_classes=3, head="bnneck", lr=0.01), make_trainer)
    optimizer = module.configure_optimizers()["optimizer"]
    one = batch()
    first = module.training_step(one, 0)
    for _ in range(40):
        loss = module.training_step(one, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 * first
    with torch.no_grad():
        assert module.supervised_losses(one)["hard_precision"] == 1


def test_the_losses_are_those_of_the_functions():
    module = ADCluster(**SMALL).eval()
    one = batch()
    expected = batch_hard_triplet(module(one["image"]), one["label"])
    torch.testing.assert_close(module.adaptation_losses(one)["loss"], expected)


def test_erased_rectangles_are_filled_behind_the_normalisation():
    module = SourceReID(**SMALL, num_classes=3, mean=[0.5] * 3, std=[0.1] * 3, erase_fill=[1.0, 2.0, 3.0])
    seen = []
    module.model.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    one = batch()
    one["erased"][1] = torch.tensor([2, 3, 10, 9])
    module.train_features(one)
    assert torch.equal(seen[0][1, :, 2, 3], torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(seen[0][1, :, 9, 8], torch.tensor([1.0, 2.0, 3.0]))
    untouched = (one["image"] - 0.5) / 0.1
    torch.testing.assert_close(seen[0][0], untouched[0])
    torch.testing.assert_close(seen[0][1, :, 10:], untouched[1, :, 10:])


def test_the_adaptation_follows_the_source_with_its_own_optimiser():
    module = ADCluster(**SMALL, num_classes=3, source_epochs=2, source_lr=0.02, lr=0.3)
    assert not module.adapting
    adam = module.configure_optimizers()["optimizer"]
    assert type(adam).__name__ == "Adam"
    assert [group["lr"] for group in adam.param_groups] == [0.02, 0.06]
    module.begin_adaptation()
    sgd = module.configure_optimizers()
    assert type(sgd).__name__ == "SGD"
    assert sgd.param_groups[0]["lr"] == 0.3
    assert not any(p.requires_grad for p in module.head.parameters())


def test_the_rate_of_the_source_falls_to_a_thousandth():
    module = SourceReID(**SMALL, num_classes=3, lr=1.0, decay_start=2, decay_epochs=3)
    made = module.configure_optimizers()
    rates = []
    for _ in range(6):
        rates.append(made["lr_scheduler"].get_last_lr()[0])
        made["optimizer"].step()
        made["lr_scheduler"].step()
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.01, 0.001])


def test_a_batch_without_pictures_moves_nothing(make_trainer):
    module = attached(ADCluster(**SMALL, weight_decay=0.1, lr=0.1), make_trainer)
    optimizer = module.configure_optimizers()
    empty = {key: value[:0] for key, value in batch().items()}
    before = copy.deepcopy(module.state_dict())

    def closure(one):
        loss = module.training_step(one, 0)
        loss.backward()  # it has a graph: several processes wait for gradients
        return loss

    module.on_train_batch_start(empty, 0)
    module.optimizer_step(0, 0, optimizer, lambda: closure(empty))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.on_train_batch_start(batch(), 0)
    module.optimizer_step(0, 0, optimizer, lambda: closure(batch()))
    assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": -1.0}, "margin=-1.0 must not be negative"),
        ({"lr": 0.0}, "lr=0.0 must be positive"),
        ({"num_classes": 1, "source_epochs": 1}, "num_classes=1 must be at least 2"),
        ({"source_epochs": -1}, "source_epochs=-1 must not be negative"),
        ({"source_epochs": 1}, "source_epochs=1 needs num_classes"),
        ({"momentum": 1.0}, r"momentum=1.0 must lie in \[0, 1\)"),
        ({"mean": [0.5] * 3}, "go together"),
        ({"erase_fill": [0.0]}, "needs three values"),
        ({"encoder": "resnet51"}, "resnet50"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ADCluster(**SMALL | arguments)


def test_a_fit_refuses_data_of_another_kind(make_trainer, market1501_root):
    from datamodules import Market1501DataModule

    data = Market1501DataModule(str(market1501_root), height=32, width=16, num_workers=0)
    with pytest.raises(ValueError, match="train_on='ids' does not fit ADCluster: give 'clusters'"):
        make_trainer(max_epochs=1).fit(ADCluster(**SMALL), datamodule=data)
    data = Market1501DataModule(str(market1501_root), train_on="clusters", height=32, width=16, num_workers=0)
    with pytest.raises(ValueError, match="does not fit SourceReID"):
        make_trainer(max_epochs=1).fit(SourceReID(**SMALL), datamodule=data)
    with pytest.raises(ValueError, match=r"needs labelled pictures: give data\.source_root"):
        make_trainer(max_epochs=1).fit(ADCluster(**SMALL, num_classes=8, source_epochs=1), datamodule=data)


# --- weights and checkpoints -----------------------------------------------------------------------------------------


def saved(module, make_trainer, path):
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def test_the_adaptation_starts_from_a_checkpoint_of_the_source(make_trainer, tmp_path):
    source = SourceReID(**SMALL, num_classes=3)
    path = saved(source, make_trainer, tmp_path / "source.ckpt")
    module = ADCluster(**SMALL, base_checkpoint=str(path))
    assert all(torch.equal(value, source.model.state_dict()[name]) for name, value in module.model.state_dict().items())
    with pytest.raises(ValueError, match="of another shape"):
        ADCluster(encoder="tiny", encoder_args={"width": 8}, base_checkpoint=str(path))


def test_weights_of_a_classifier_are_taken_without_its_last_layer(tmp_path):
    from lit_methods.backbones import build_backbone

    trained = build_backbone("resnet18", 1000).state_dict()
    torch.save(trained, tmp_path / "resnet18.pth")
    module = PersonRetrieval("resnet18", base_checkpoint=str(tmp_path / "resnet18.pth"))
    assert torch.equal(module.model.network.conv1.weight, trained["conv1.weight"])


def test_a_checkpoint_knows_that_the_adaptation_has_begun(make_trainer, tmp_path):
    module = ADCluster(**SMALL, num_classes=3, source_epochs=1)
    before = saved(module, make_trainer, tmp_path / "before.ckpt")
    module.begin_adaptation()
    after = saved(module, make_trainer, tmp_path / "after.ckpt")
    assert not Predictor.from_checkpoint(before).module.adapting
    assert Predictor.from_checkpoint(after).module.adapting
    assert load_plain(after)["hyper_parameters"]["base_checkpoint"] is None


# --- pictures of the user's own --------------------------------------------------------------------------------------


@pytest.fixture
def gallery(tmp_path):
    folder = tmp_path / "gallery"
    folder.mkdir()
    for name, colour in {"red": (220, 10, 10), "green": (10, 220, 10), "blue": (10, 10, 220)}.items():
        Image.new("RGB", (20, 50), colour).save(folder / f"{name}.png")
    return folder


def test_a_gallery_is_ranked_for_each_query(gallery, make_trainer):
    class MeanColour(nn.Module):
        def forward(self, image):
            return image.mean((2, 3))

    module = PersonRetrieval(MeanColour(), input_size=[3, 32, 16])
    queries = shutil.copytree(gallery, gallery.parent / "queries")
    batches = module.prepare_inputs([queries / "blue.png", queries / "red.png"], gallery=str(gallery), top=2)
    found = [result for b in batches for result in module.predict_step(b, 0)]
    assert [result["nearest"][0] for result in found] == [str(gallery / "blue.png"), str(gallery / "red.png")]
    assert [len(result["nearest"]) for result in found] == [2, 2]
    assert found[0]["distances"][0] == pytest.approx(0, abs=1e-6)
    assert found[0]["distances"][1] > 0.5
    drawn = module.draw(np.asarray(Image.open(gallery / "blue.png")), found[0])
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] > 3 * drawn.shape[0] // 4


def test_a_query_in_the_gallery_is_not_its_own_match(gallery):
    module = PersonRetrieval(**SMALL).eval()
    (batch,) = module.prepare_inputs([gallery / "red.png"], gallery=str(gallery), top=9)
    (result,) = module.predict_step(batch, 0)
    assert sorted(result["nearest"]) == [str(gallery / "blue.png"), str(gallery / "green.png")]


def test_the_gallery_is_encoded_as_the_queries_are(gallery, make_trainer):
    """The Trainer asks for the first batch of queries while the module is still in train mode."""
    module = PersonRetrieval(**SMALL)
    queries = shutil.copytree(gallery, gallery.parent / "queries")
    statistics = {name: value.clone() for name, value in module.model.named_buffers()}
    found = make_trainer().predict(module, module.prepare_inputs(sorted(queries.iterdir()), gallery=str(gallery)))
    assert [result["distances"][0] for batch in found for result in batch] == pytest.approx([0, 0, 0], abs=1e-5)
    assert all(torch.equal(value, statistics[name]) for name, value in module.model.named_buffers())


def test_a_checkpoint_of_a_network_in_code_asks_for_it(make_trainer, tmp_path):
    path = saved(PersonRetrieval(nn.Conv2d(3, 4, 3), input_size=[3, 32, 16]), make_trainer, tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match="encoder: missing; the checkpoint is of a network given as an object"):
        Predictor.from_checkpoint(path)
    assert Predictor.from_checkpoint(path, encoder=nn.Conv2d(3, 4, 3)).module.model.num_features == 4


def test_what_is_wrong_with_a_gallery_is_said_at_once(gallery, tmp_path):
    module = PersonRetrieval(**SMALL)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        module.prepare_inputs([], gallery=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="top=0 must be at least 1"):
        module.prepare_inputs([], gallery=str(gallery), top=0)
    (gallery / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="cannot read the image"):
        module.prepare_inputs([], gallery=str(gallery))


def test_features_alone_without_a_gallery(gallery):
    found = Predictor(PersonRetrieval(**SMALL))([gallery / "red.png", np.zeros((9, 7, 3), np.uint8)])
    assert [list(result) for result in found] == [["features"], ["features"]]
    assert found[0]["features"].shape == (16,)


def test_a_person_is_stretched_and_nothing_cut_off():
    image = torch.zeros(3, 40, 40)
    image[:, 0], image[:, -1], image[:, :, 0] = 1, 1, 1
    seen = PersonRetrieval.view(image, [3, 20, 10])
    assert seen.shape == (3, 20, 10)
    assert seen[:, 0].min() > 0.2
    assert seen[:, -1].min() > 0.2


def test_right_and_wrong_ones_are_framed():
    black = np.zeros((128, 64, 3), np.uint8)
    picture = ranked_list(black, [black, black], right=[True, False])
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {RIGHT, WRONG} < colours


def test_the_encoder_is_exported_with_a_dynamic_batch():
    module = PersonRetrieval(**SMALL).eval()
    graph = module.export_graphs()["encoder"]
    program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.dynamic_shapes)
    image = torch.rand(5, 3, 32, 16)
    torch.testing.assert_close(program.module()(image), module(image), rtol=1e-5, atol=1e-6)


# --- the generator ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_generator_learns_to_give_back_what_it_gets(make_trainer, market1501_root):
    from datamodules import Market1501DataModule

    data = Market1501DataModule(
        str(market1501_root), train_on="cameras", height=32, width=16, batch_size=12, num_workers=0
    )
    module = CameraStarGAN(num_cameras=3, **PAIR, lr=4e-3, n_critic=1, total_steps=200, decay_steps=0)
    trainer = make_trainer(max_epochs=5)
    before = trainer.validate(copy.deepcopy(module), datamodule=data, verbose=False)[0]
    trainer.fit(module, datamodule=data)
    after = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert after["val/reconstruction"] < 0.75 * before["val/reconstruction"]
    assert 0 <= after["val/camera_accuracy"] <= 1
    assert trainer.global_step == 2 * 5 * trainer.num_training_batches  # both networks


def test_the_generators_rate_falls_to_zero(make_trainer, market1501_root):
    from datamodules import Market1501DataModule

    data = Market1501DataModule(str(market1501_root), train_on="cameras", height=32, width=16, num_workers=0)
    module = CameraStarGAN(num_cameras=3, **PAIR, total_steps=2000, decay_steps=1000)
    rates = []
    module.trainer = make_trainer()
    module.log = lambda *args, **kwargs: None
    optimizers = module.configure_optimizers()
    module.optimizers = lambda: optimizers
    data.setup("fit")
    one = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    one = {key: value[:2] for key, value in one.items()}
    for step in (0, 1999, 2000):
        module._step = lambda batch_idx, step=step: step
        module.training_step(one, 0)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    assert rates == [[1e-4, 1e-4], [1e-4, 1e-4], [0, 0]]


def test_a_picture_is_predicted_for_each_camera():
    module = CameraStarGAN(num_cameras=3, **PAIR).eval()
    (result,) = module.predict_step({"image": torch.rand(1, 3, 32, 16)}, 0)
    assert list(result) == ["camera_1", "camera_2", "camera_3"]
    assert {(style.dtype, tuple(style.shape)) for style in result.values()} == {(torch.uint8, (3, 32, 16))}
    assert module.draw(np.zeros((32, 16, 3), np.uint8), result).shape[1] > 4 * 160


def test_the_generator_is_exported():
    module = CameraStarGAN(num_cameras=3, **PAIR).eval()
    graph = module.export_graphs()["generator"]
    program = torch.export.export(graph.module, graph.inputs, dynamic_shapes=graph.dynamic_shapes)
    image, camera = torch.rand(3, 3, 32, 16), torch.tensor([2, 0, 1])
    torch.testing.assert_close(program.module()(image, camera), module(image, camera), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_cameras": 1}, "there is no other style"),
        ({"n_critic": 0}, "n_critic=0 must be at least 1"),
        ({"total_steps": 5, "decay_steps": 6}, "decay_steps=6"),
        ({"rec_weight": -1.0}, "rec_weight=-1.0 must not be negative"),
    ],
)
def test_bad_arguments_of_the_generator_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CameraStarGAN(**PAIR | arguments)


def test_a_generator_of_other_cameras_is_refused(make_trainer, market1501_root):
    from datamodules import Market1501DataModule

    data = Market1501DataModule(str(market1501_root), train_on="cameras", height=32, width=16, num_workers=0)
    with pytest.raises(ValueError, match="num_cameras=4, but the data have 3 cameras"):
        make_trainer(max_epochs=1).fit(CameraStarGAN(num_cameras=4, **PAIR), datamodule=data)
