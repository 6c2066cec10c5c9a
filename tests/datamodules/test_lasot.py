import shutil
from itertools import pairwise

import pytest
import torch
from PIL import Image

from datamodules import LaSOTDataModule, TrackingBenchmarkDataModule
from datamodules.demo import write_tracking
from datamodules.lasot import hold_out
from datamodules.lasot_files import (
    ATTRIBUTES,
    find_videos,
    read_annotations,
    read_test_names,
    read_test_videos,
    read_videos,
)
from datamodules.lasot_split import TEST_VIDEOS
from datamodules.tracking_sequences import NumberedFrames
from tests.module_fits import Noting


def add(root, name, count=3, images=None, box="1,2,3,4", nested=True):
    """A video as LaSOT has it, with empty files for pictures."""
    folder = root / name.rpartition("-")[0] / name if nested else root / name
    (folder / "img").mkdir(parents=True)
    for number in range(1, (count if images is None else images) + 1):
        (folder / "img" / f"{number:08d}.jpg").touch()
    (folder / "groundtruth.txt").write_text(f"{box}\n" * count)
    for flags in ("full_occlusion.txt", "out_of_view.txt"):
        (folder / flags).write_text(",".join(["0"] * count) + "\n")
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Six training and three test videos of six frames. Do not change its files."""
    return write_tracking(tmp_path_factory.mktemp("tracking") / "lasot", train=6, test=3, frames=6, size=(60, 80))


def small(root, **arguments):
    sizes = {"batch_size": 2, "pairs_per_epoch": 6, "val_videos": 2, "num_workers": 0, "search_size": 63}
    return LaSOTDataModule(str(root), **sizes | {"template_size": 31, "sequences": 2} | arguments)


def test_the_official_split_has_four_videos_of_each_category():
    categories = [name.rpartition("-")[0] for name in TEST_VIDEOS]
    assert len(set(TEST_VIDEOS)) == 280
    assert len(set(categories)) == 70
    assert all(categories.count(category) == 4 for category in categories)


def test_the_official_split_is_that_of_the_toolkit(shared):
    folder = shared / "data" / "lasot_annotations"
    assert sorted(TEST_VIDEOS) == sorted((folder / "testing_set.txt").read_text().split())
    everything = (folder / "all_dataset.txt").read_text().split()
    assert set(TEST_VIDEOS) < set(everything)
    assert len(everything) - len(TEST_VIDEOS) == 1120
    assert read_test_names(folder) == (folder / "testing_set.txt").read_text().split()


def test_real_annotation_is_read_with_its_flags_and_attributes(shared):
    videos = {video.name: video for video in read_annotations(shared / "data" / "lasot_annotations")}
    absent = {name: int((~video.present).sum()) for name, video in videos.items()}
    assert len(videos) == 14
    assert (len(videos["basketball-1"]), absent["basketball-1"]) == (1088, 3)
    assert (len(videos["volleyball-19"]), absent["volleyball-19"]) == (1467, 270)
    assert videos["basketball-1"].boxes[0].tolist() == [347, 135, 19, 18]
    assert sum(absent.values()) == 835
    gone = {"Full Occlusion", "Out-of-View"}
    assert all(gone & {*video.attributes} for video in videos.values() if not video.present.all())
    assert videos["basketball-1"].attributes == (
        "Background Clutter", "Scale Variation", "Full Occlusion", "Fast Motion", "Low Resolution",
    )  # fmt: skip


def test_results_can_be_scored_against_annotation_but_nothing_tracked(shared):
    data = TrackingBenchmarkDataModule("lasot", str(shared / "data" / "lasot_annotations"))
    with pytest.warns(UserWarning, match="266 of 280 test videos are not in root"):
        data.setup("test")
    assert len(data.evaluation_sequences()) == 14
    with pytest.raises(ValueError, match="annotations without frames"):
        data.test_dataloader()


def test_videos_lie_in_their_category_or_in_the_root(tmp_path):
    for name, nested in (("dog-10", True), ("dog-9", True), ("cat-1", False), ("rubicCube-2", True)):
        add(tmp_path, name, nested=nested)
    (tmp_path / "dog" / ".dog-3").mkdir()
    (tmp_path / "dog" / "notes").mkdir()
    (tmp_path / "dog.zip").touch()
    assert list(find_videos(tmp_path)) == ["cat-1", "dog-9", "dog-10", "rubicCube-2"]


def test_the_target_is_present_where_it_is_neither_hidden_nor_outside(tmp_path):
    folder = add(tmp_path, "dog-1", 4)
    (folder / "full_occlusion.txt").write_text("0,1,0,0\n")
    (folder / "out_of_view.txt").write_text("0\n0\n1\n0\n")  # one on each line is understood, too
    (video,) = read_videos(find_videos(tmp_path), tmp_path)
    assert video.present.tolist() == [True, False, False, True]
    assert (video.category, len(video)) == ("dog", 4)
    assert list(video.frames) == [f"{folder}/img/{number:08d}.jpg" for number in (1, 2, 3, 4)]


def test_attributes_are_known_where_the_toolkits_files_lie_in_the_root(tmp_path):
    add(tmp_path, "dog-1")
    add(tmp_path, "dog-2")
    (tmp_path / "att").mkdir()
    (tmp_path / "att" / "dog-2.txt").write_text(",".join(["1", *["0"] * 12, "1"]))
    without, known = read_videos(find_videos(tmp_path), tmp_path)
    assert without.attributes == ()
    assert known.attributes == (ATTRIBUTES[0], ATTRIBUTES[-1]) == ("Illumination Variation", "Aspect Ratio Change")
    (tmp_path / "att" / "dog-1.txt").write_text("1,0")
    with pytest.raises(ValueError, match=r"dog-1.txt' must have 14 flags, one for each attribute, got 2"):
        read_videos(find_videos(tmp_path), tmp_path)


def test_three_frames_are_looked_at_where_all_is_as_expected(tmp_path, monkeypatch):
    add(tmp_path, "dog-1", 30)
    monkeypatch.setattr("datamodules.lasot_files.list_frames", lambda folder: pytest.fail("the folder was listed"))
    (video,) = read_videos(find_videos(tmp_path), tmp_path)
    assert isinstance(video.frames, NumberedFrames)
    assert len(video.frames) == 30


def test_videos_are_cut_to_the_shorter_with_one_warning(tmp_path):
    add(tmp_path, "dog-10", 30, images=29)
    add(tmp_path, "dog-9", 30, images=32)
    add(tmp_path, "dog-1", 30)
    with pytest.warns(UserWarning, match="cut to the shorter") as warned:
        videos = read_videos(find_videos(tmp_path), tmp_path)
    (message,) = [str(warning.message) for warning in warned]
    assert message.index("dog-9 (30 lines in") < message.index("dog-10 (30 lines in")
    assert "29 frames in img" in message
    assert [(len(video), len(video.frames)) for video in videos] == [(30, 30), (30, 30), (29, 29)]


def test_a_ground_truth_of_another_video_is_refused(tmp_path):
    folder = add(tmp_path, "dog-1", 30, images=40)
    with pytest.raises(ValueError, match=r"'dog-1' has 30 lines in .*groundtruth.txt', .*, 40 frames in img: each"):
        read_videos(find_videos(tmp_path), tmp_path)
    shutil.rmtree(folder)
    folder = add(tmp_path, "dog-1", 30)
    (folder / "out_of_view.txt").write_text("0,0,0\n")
    with pytest.raises(ValueError, match=r"3 flags in out_of_view.txt"):
        read_videos(find_videos(tmp_path), tmp_path)


@pytest.mark.parametrize("lost", ["groundtruth.txt", "full_occlusion.txt", "out_of_view.txt"])
def test_a_video_without_one_of_its_files_is_named(tmp_path, lost):
    (add(tmp_path, "dog-1") / lost).unlink()
    with pytest.raises(FileNotFoundError, match=f"the video .*dog-1' lacks {lost}; the archives of LaSOT have it"):
        read_videos(find_videos(tmp_path), tmp_path)


def test_a_video_without_frames_is_named(tmp_path):
    shutil.rmtree(add(tmp_path, "dog-1") / "img")
    with pytest.raises(FileNotFoundError, match=r"dog-1/img' does not exist"):
        read_videos(find_videos(tmp_path), tmp_path)


def test_a_list_in_the_root_takes_the_place_of_the_official_one(tmp_path):
    for name in ("dog-1", "dog-2", "dog-3", "dog-7"):
        add(tmp_path, name)
    with pytest.warns(UserWarning, match="278 of 280 test videos are not in root"):
        assert [video.name for video in read_test_videos(tmp_path)] == ["dog-1", "dog-7"]
    (tmp_path / "testing_set.txt").write_text("dog-3\r\ndog-2\r\n")
    (tmp_path / "other.txt").write_text("dog-2\n")
    assert [video.name for video in read_test_videos(tmp_path)] == ["dog-3", "dog-2"]
    data = small(tmp_path, test_split="other.txt", val_videos=1)
    data.setup("validate")
    data.setup("test")
    assert [video.name for video in data.evaluation_sequences("test")] == ["dog-2"]
    assert data.evaluation_sequences("val")[0].name in ("dog-1", "dog-3", "dog-7")


def test_faults_of_a_list_are_named(tmp_path):
    add(tmp_path, "dog-2")
    with pytest.raises(FileNotFoundError, match=r"test_split='mine.txt' is not in root="):
        read_test_names(tmp_path, "mine.txt")
    with pytest.raises(FileNotFoundError, match="has none of the 280 test videos, such as airplane-1"):
        read_test_videos(tmp_path)
    for text, fault in (("", r"testing_set.txt' is empty"), ("a-1\na-1", r"line 2: expected .* not come twice")):
        (tmp_path / "testing_set.txt").write_text(text)
        with pytest.raises(ValueError, match=fault):
            read_test_names(tmp_path)


def test_videos_to_validate_on_are_of_many_categories_and_fewer_are_part_of_more():
    names = [f"{category}-{number}" for category in ("ant", "bee", "cow") for number in range(1, 17)]
    chosen = [hold_out(names, count, seed=0) for count in range(7)]
    assert [len(each) for each in chosen] == [0, 1, 2, 3, 4, 5, 6]
    assert all(set(fewer) < set(more) for fewer, more in pairwise(chosen))
    assert [name[:3] for name in chosen[3]] == ["ant", "bee", "cow"]
    assert sorted(name[:3] for name in chosen[6]) == ["ant", "ant", "bee", "bee", "cow", "cow"]
    assert hold_out(names, 6, seed=1) != chosen[6]


def test_training_validation_and_test_share_no_video(drawn):
    data = small(drawn)
    data.setup("fit")
    data.setup("test")
    stages = [data.evaluation_sequences("val"), data.evaluation_sequences("test"), data.training_sequences()]
    names = [video.name for videos in stages for video in videos]
    assert [len(videos) for videos in stages] == [2, 3, 4]
    assert len(set(names)) == 9
    assert data.summary() == {"data/val_videos": 2, "data/test_videos": 3, "data/train_videos": 4}


def test_evaluation_takes_the_first_frames_where_it_is_told_to(drawn):
    data = small(drawn, val_frames=2, test_frames=3)
    data.setup("validate")
    data.setup("test")
    assert [len(frames) for batch in data.val_dataloader() for frames in batch["frames"]] == [2, 2]
    batches = list(data.test_dataloader())
    assert [len(boxes) for batch in batches for boxes in batch["boxes"]] == [3, 3, 3]
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2]]


def test_no_videos_to_validate_on_is_no_loader(drawn):
    data = small(drawn, val_videos=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert len(data.training_sequences()) == 6


def test_holding_out_everything_is_refused(drawn):
    with pytest.raises(ValueError, match="val_videos=6 leaves none of the 6 videos"):
        small(drawn, val_videos=6).setup("fit")


def test_a_missing_root_is_told_when_it_is_wanted_and_not_before(tmp_path):
    data = small(tmp_path / "nowhere")
    for ask in (data.prepare_data, lambda: data.setup("fit"), lambda: data.setup("test")):
        with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist. Point root at .* demo=True"):
            ask()
    with pytest.raises(RuntimeError, match=r'setup\("fit"\)'):
        data.train_dataloader()
    with pytest.raises(RuntimeError, match=r'setup\("fit"\)'):
        data.val_dataloader()
    with pytest.raises(RuntimeError, match=r'setup\("test"\)'):
        data.test_dataloader()


def test_demo_writes_a_set_once(tmp_path, monkeypatch):
    calls = []

    def write(root):
        calls.append(root)
        add(root, "dog-1")

    monkeypatch.setattr("datamodules.lasot.write_tracking", write)
    data = small(tmp_path / "demo", demo=True)
    data.prepare_data()
    data.prepare_data()
    assert calls == [tmp_path / "demo"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"pairs_per_epoch": 0}, "pairs_per_epoch must be at least"),
     ({"val_videos": -1}, "val_videos must be 0 or more"), ({"num_workers": -1}, "num_workers must be 0 or more"),
     ({"val_frames": 0}, "val_frames must be at least 1"), ({"sequences": 0}, "sequences must be at least 1")],
)  # fmt: skip
def test_arguments_out_of_range_are_named(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        small("nowhere", **arguments)


class Seen(Noting):
    """Remembers the boxes that it was trained on and the videos that it was shown."""

    def __init__(self, fail_at=None):
        super().__init__(fail_at)
        self.boxes, self.videos = [], []

    def note_training(self, batch, batch_idx):
        self.boxes.append((self.current_epoch, batch_idx, batch["box"].clone()))
        return batch["box"].mean()

    def note_evaluation(self, batch):
        self.videos += batch["name"]


def test_training_pairs_are_batches_of_the_sizes_asked_for(drawn):
    data = small(drawn)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(batch["box"]) for batch in batches] == [2, 2, 2]
    assert batches[0]["template"].shape == (2, 3, 31, 31)
    assert batches[0]["search"].shape == (2, 3, 63, 63)
    assert {name: value.dtype for name, value in batches[0].items()} == {
        "template": torch.float32, "search": torch.float32, "box": torch.float32, "negative": torch.bool,
        "keys": torch.float32,
    }  # fmt: skip


def test_workers_and_epochs_change_what_they_should(drawn):
    def boxes(epoch=0, **arguments):
        data = small(drawn, **arguments)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch["box"] for batch in loader])

    assert torch.equal(boxes(), boxes(num_workers=2))
    assert not torch.equal(boxes(), boxes(epoch=1))
    assert not torch.equal(boxes(), boxes(seed=1))


@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_a_fit_that_failed_goes_on_with_the_pairs_that_it_had_not_seen(drawn, make_trainer, tmp_path):
    from lightning.pytorch.callbacks import OnExceptionCheckpoint

    whole, broken, resumed = Seen(), Seen(fail_at=4), Seen()
    make_trainer(max_epochs=2).fit(whole, small(drawn))
    trainer = make_trainer(max_epochs=2, callbacks=[OnExceptionCheckpoint(tmp_path, "last")], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(broken, small(drawn))
    make_trainer(max_epochs=2).fit(resumed, small(drawn), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    seen = broken.boxes + resumed.boxes
    assert [where for *where, _ in seen] == [where for *where, _ in whole.boxes]
    assert all(torch.equal(one, other) for (*_, one), (*_, other) in zip(seen, whole.boxes, strict=True))


def test_other_sets_take_part_in_training(drawn, tmp_path):
    (tmp_path / "train.json").write_text('{"a": {"00": {"000000": [1, 2, 30, 40]}}}')
    (tmp_path / "crop511" / "a").mkdir(parents=True)
    Image.new("RGB", (511, 511), (200, 0, 0)).save(tmp_path / "crop511" / "a" / "000000.00.x.jpg")
    coco = {"root": str(tmp_path), "frame_range": 1, "uses": 1}
    plain = {"search_size": 61, "search_colour": 0, "search_blur": 0, "neg_prob": 0, "pairs_per_epoch": 40}
    data = small(drawn, uses=1, extra_sets={"coco": coco}, **plain)
    data.setup("fit")
    reds = torch.cat([(batch["search"] - torch.tensor([0, 0, 200.0]).view(3, 1, 1)).abs().amax((1, 2, 3)) < 9
                      for batch in data.train_dataloader()])  # fmt: skip
    assert reds.sum() == 20
    with pytest.raises(ValueError, match=r"extra_sets: 'coco' does not say how to read it: .*rooot"):
        small(drawn, extra_sets={"coco": coco | {"rooot": "x"}}).setup("fit")


def test_two_processes_share_pairs_and_videos_out(drawn, company):
    shares, videos = [], []
    for rank in (0, 1):
        company(2, rank)
        data = small(drawn)
        data.setup("fit")
        data.setup("test")
        shares.append(list(data.train_dataloader().sampler))
        videos += [name for batch in data.test_dataloader() for name in batch["name"]]
    assert [len(share) for share in shares] == [3, 3]
    assert sorted(shares[0] + shares[1]) == [(0, number) for number in range(6)]
    assert sorted(videos) == sorted(read_test_names(drawn))


def test_a_trainer_validates_and_tests_on_whole_videos(drawn, make_trainer):
    data, seen = small(drawn), Seen()
    trainer = make_trainer(max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(seen, data)
    assert seen.videos == [video.name for video in data.evaluation_sequences("val")]
    seen.videos.clear()
    trainer.test(seen, data, verbose=False)
    assert seen.videos == read_test_names(drawn)
