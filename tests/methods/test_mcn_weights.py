"""Trained backbones from torch and darknet files, and files that are of something else."""

import struct

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import vgg as torchvision_vgg

from lit_methods.mcn import vgg
from lit_methods.mcn.model import DarkNet53, MCNet, VGG16Features
from lit_methods.mcn.weights import darknet_numbers, load_backbone_weights

pytestmark = pytest.mark.usefixtures("light_grounder")


def darknet(seed=0):
    torch.manual_seed(seed)
    return with_statistics(DarkNet53(width=1 / 16, depths=[1, 2, 1, 1, 0]))


@pytest.fixture
def thin(monkeypatch):
    """VGG16 with few channels."""
    monkeypatch.setattr(vgg, "_STAGES", ((4, 4), (4, 4), (4, 4, 4), (8, 8, 8), (8, 8, 8)))
    monkeypatch.setattr(vgg, "_COARSE", 16)

    def build(seed=0):
        torch.manual_seed(seed)
        return with_statistics(VGG16Features())

    return build


def with_statistics(net):
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias)
    return net.eval()


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(x, theirs[name]) for name, x in ours.items() if not name.endswith("num_batches_tracked"))


def written(path, net, header=(0, 2, 0), seen="<q", extra=b""):
    """A darknet file; the order is that in which the network calls its layers."""
    called = []
    hooks = [
        part.register_forward_hook(lambda module, *_: called.append(module))
        for part in net.modules()
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d)
    ]
    net.eval()(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    arrays = []
    for place, part in enumerate(called):
        if isinstance(part, nn.Conv2d):
            norm = called[place + 1] if part.bias is None else None
            first = [part.bias] if norm is None else [norm.bias, norm.weight, norm.running_mean, norm.running_var]
            arrays += [*first, part.weight]
    numbers = np.concatenate([x.detach().numpy().astype("<f4").ravel() for x in arrays])
    path.write_bytes(struct.pack("<3i", *header) + struct.pack(seen, 32_013_312) + numbers.tobytes() + extra)
    return str(path)


def saved(path, tensors):
    torch.save(tensors, path)
    return str(path)


@pytest.mark.parametrize(("header", "seen"), [((0, 2, 0), "<q"), ((0, 1, 0), "<i"), ((1, 0, 5), "<q")])
def test_a_darknet_file_loads_whatever_its_version(tmp_path, header, seen):
    trained, net = darknet(), darknet(seed=1)
    report = load_backbone_weights(net, written(tmp_path / "a.weights", trained, header, seen))
    assert same(trained, net)
    assert report.endswith(
        f"{darknet_numbers(net)} numbers into the 22 convolutions of Darknet-53; 0 numbers left over"
    )


def test_a_darknet_file_of_vgg16_has_biases_first(tmp_path, thin):
    trained, net = thin(), thin(seed=1)
    report = load_backbone_weights(net, written(tmp_path / "a.weights", trained))
    assert same(trained, net)
    assert "the 19 convolutions of VGG16; 0 numbers left over" in report


def test_the_rest_of_a_detector_is_left_over_and_told(tmp_path):
    trained, net = darknet(), darknet(seed=1)
    path = written(tmp_path / "yolov3.weights", trained, extra=np.ones(255, "<f4").tobytes())
    assert load_backbone_weights(net, path).endswith("; 255 numbers left over")
    assert same(trained, net)


def test_a_short_file_says_how_short(tmp_path):
    net, wanted = darknet(), darknet_numbers(darknet())
    path = tmp_path / "short.weights"
    written(path, net)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f"{wanted} numbers are needed, {wanted - 10} found; it is cut off"):
        load_backbone_weights(net, str(path))


def test_a_short_file_that_has_the_other_backbones_length_names_it(tmp_path):
    with torch.device("meta"):
        net, other = DarkNet53(), VGG16Features()
    path = tmp_path / "vgg.weights"
    path.write_bytes(struct.pack("<3iq", 0, 2, 0, 0))
    with path.open("r+b") as file:
        file.truncate(20 + 4 * darknet_numbers(other))  # zeros that take no room
    with pytest.raises(ValueError, match=r"Darknet-53: 56367712 numbers are needed, 30199616 found.*those of VGG16;"):
        load_backbone_weights(net, str(path))


def test_numbers_of_another_network_are_found_out_and_change_nothing(tmp_path, thin):
    net = thin(seed=1)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    path = written(tmp_path / "a.weights", darknet())
    with pytest.raises(ValueError, match=r"does not fit VGG16: .*running_var is below zero.*Darknet-53 is MCN's other"):
        load_backbone_weights(net, path)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_a_number_that_is_none_is_found_out(tmp_path):
    trained, net = darknet(), darknet(seed=1)
    with torch.no_grad():
        trained.tail[5].conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"tail\.5\.conv\.weight is below zero or no number"):
        load_backbone_weights(net, written(tmp_path / "a.weights", trained))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "no darknet file"),
        (b"abc", "no darknet file"),
        (b"", "no darknet file"),
        (struct.pack("<3iq", 0, 2, 0, 0), "0 found"),
        (struct.pack("<3i", 0, 2, 0), "0 found"),
    ],
)
def test_what_is_no_darknet_file_is_refused(tmp_path, content, message):
    path = tmp_path / "a.weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(darknet(), str(path))


def test_a_file_that_ends_within_a_number_is_refused(tmp_path):
    path = written(tmp_path / "a.weights", darknet(), extra=b"\0\0")
    with pytest.raises(ValueError, match="2 bytes behind the last"):
        load_backbone_weights(darknet(), path)


@pytest.mark.parametrize("name", ["a.weights", "a.pth"])
def test_a_missing_file_is_named_by_our_argument(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"^backbone_weights=.*does not exist"):
        load_backbone_weights(darknet(), str(tmp_path / name))


@pytest.mark.parametrize(
    "prefix", ["", "model.backbone.", *(pytest.param(p, marks=pytest.mark.slow) for p in ("module.", "backbone."))]
)
def test_a_state_dict_loads_with_the_prefixes_that_wrappers_give(tmp_path, prefix):
    trained, net = darknet(), darknet(seed=1)
    path = saved(tmp_path / "a.pth", {prefix + name: x for name, x in trained.state_dict().items()})
    assert "all of the backbone" in load_backbone_weights(net, path)
    assert same(trained, net)


def test_of_a_checkpoint_of_ours_the_backbone_is_taken(tmp_path):
    first, second = (MCNet("tiny", word_dim=6, hidden=16, dim=8) for _ in range(2))
    with_statistics(first.backbone)
    tensors = {f"model.{name}": x for name, x in first.state_dict().items()} | {"words": torch.zeros(3, 6)}
    fusion = second.fusion.linear.weight.clone()
    report = load_backbone_weights(second.backbone, saved(tmp_path / "a.ckpt", {"state_dict": tensors}))
    beside = len(tensors) - len(first.backbone.state_dict())
    assert report.endswith(f"; {beside} of the file left out")
    assert same(first.backbone, second.backbone)
    assert torch.equal(fusion, second.fusion.linear.weight)


def test_a_vgg16_classifier_gives_its_13_convolutions_and_says_so(tmp_path, thin):
    trained, net, untouched = thin(), thin(seed=1), thin(seed=1)
    tensors = {f"features.{name}": x for name, x in trained.features.state_dict().items()}
    assert len(tensors) == 26
    path = saved(tmp_path / "vgg16.pth", tensors | {"classifier.0.weight": torch.zeros(2, 2)})
    report = load_backbone_weights(net, path)
    assert "13 convolutions" in report
    assert "tail are in no such file" in report
    assert "1 tensors of the file left out" in report
    assert same(trained.features, net.features)
    assert same(untouched.tail, net.tail)


def test_convolutions_of_vgg16_have_torchvisions_names_and_function():
    with torch.device("meta"):
        theirs = torchvision_vgg.make_layers(torchvision_vgg.cfgs["D"], batch_norm=False)
        ours = VGG16Features()
        shapes = [{name: x.shape for name, x in net.state_dict().items()} for net in (theirs, ours.features)]
        assert shapes[0] == shapes[1]
        assert list(map(str, theirs)) == list(map(str, ours.features))
        assert ours.ends == [4, 9, 16, 23, 30]  # torchvision's max-pools


def test_a_state_dict_of_the_other_backbone_is_named(tmp_path, thin):
    for net, other, names in [
        (darknet(), thin(), "holds weights of VGG16, but the backbone is Darknet-53"),
        (thin(), darknet(), "holds weights of Darknet-53, but the backbone is VGG16"),
    ]:
        path = saved(tmp_path / "a.pth", {f"model.backbone.{name}": x for name, x in other.state_dict().items()})
        with pytest.raises(ValueError, match=names):
            load_backbone_weights(net, path)


def test_a_state_dict_of_another_width_is_listed(tmp_path):
    path = saved(tmp_path / "a.pth", DarkNet53(width=1 / 8, depths=[1, 2, 1, 1, 0]).state_dict())
    with pytest.raises(ValueError, match=r"^backbone_weights=.*does not fit this DarkNet53: 0 missing, 0 unexpected"):
        load_backbone_weights(darknet(), path)


def test_what_cannot_be_read_is_named_by_our_argument(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"^backbone_weights="):
        load_backbone_weights(darknet(), str(path))


@pytest.mark.slow
def test_the_whole_backbones_take_files_of_their_length_and_no_others(tmp_path):
    darknet53, vgg16 = with_statistics(DarkNet53()), with_statistics(VGG16Features())
    path = written(tmp_path / "darknet.weights", darknet53)
    fresh = DarkNet53()
    assert "56367712 numbers into the 58 convolutions" in load_backbone_weights(fresh, path)
    assert same(darknet53, fresh)
    with pytest.raises(ValueError, match="does not fit VGG16"):
        load_backbone_weights(vgg16, path)
    path = written(tmp_path / "vgg.weights", vgg16)
    fresh = VGG16Features()
    assert "30199616 numbers into the 19 convolutions" in load_backbone_weights(fresh, path)
    assert same(vgg16, fresh)
    with pytest.raises(ValueError, match="those of VGG16"):
        load_backbone_weights(darknet53, path)


@pytest.mark.slow
def test_the_whole_vgg16_computes_what_torchvisions_does(tmp_path):
    theirs = torchvision_vgg.vgg16(weights=None, init_weights=False).eval()
    net = VGG16Features().eval()
    load_backbone_weights(net, saved(tmp_path / "vgg16.pth", theirs.state_dict()))
    image = torch.rand(1, 3, 64, 96)
    _, v2, v3 = net(image)
    torch.testing.assert_close(v3, theirs.features[:23](image))
    torch.testing.assert_close(v2, theirs.features[:30](image))
