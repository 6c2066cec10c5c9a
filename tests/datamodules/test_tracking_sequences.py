import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.tracking_loaders import sequence_loader
from datamodules.tracking_sequences import NumberedFrames, TrackingSequence, TrackingSequences
from datamodules.tracking_text import Lengths, list_frames, read_flags, read_rows
from lit_methods.functional.frames import natural_key
from lit_methods.functional.pictures import BadImageError


def video(name="dog-1", count=3, **fields):
    boxes = np.arange(4.0 * count).reshape(count, 4) + 1
    return TrackingSequence(name, NumberedFrames(f"{name}/img", 1, count, 8), **{"boxes": boxes} | fields)


def test_numbered_frames_are_what_a_list_of_paths_would_be():
    frames = NumberedFrames("v/img", 9, 4, 4, ".png")
    paths = ["v/img/0009.png", "v/img/0010.png", "v/img/0011.png", "v/img/0012.png"]
    assert list(frames) == paths
    assert list(frames[1:3]) == paths[1:3]
    assert frames[-1] == paths[-1]
    with pytest.raises(IndexError):
        frames[4]


def test_the_first_frames_of_a_video_take_everything_along():
    whole = video(
        present=np.array([True, False, True]), polygons=np.zeros((3, 8)), tags={"occlusion": np.array([True] * 3)}
    )
    part = whole.first(2)
    assert (len(part), len(part.frames), len(part.polygons), len(part.tags["occlusion"])) == (2, 2, 2, 2)
    assert part.present.tolist() == [True, False]
    assert part.name == "dog-1"
    assert whole.first(None) is whole
    assert whole.first(3) is whole


def test_parts_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="'dog-1' must have as many of each: 3 boxes, 3 frames, 2 present"):
        video(present=np.array([True, False]))
    with pytest.raises(ValueError, match=r"must be \(n, 4\), got \(3, 5\)"):
        video(boxes=np.zeros((3, 5)))


def test_the_size_of_the_first_frame_comes_from_its_head(tmp_path):
    Image.new("RGB", (32, 24)).save(tmp_path / "1.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:50])  # cut off: decoding would fail
    assert TrackingSequence("a", (f"{tmp_path}/1.png",), np.ones((1, 4))).image_wh == (32, 24)
    with pytest.raises(BadImageError, match=r"first frame of 'b'.*nothing"):
        TrackingSequence("b", ("nothing.png",), np.ones((1, 4))).image_wh  # noqa: B018


def test_a_batch_of_videos_has_lists_and_the_position_of_each():
    present = np.array([True, False, True])
    videos = TrackingSequences([video(), video("cat-2", 2), video("cow-3", present=present, polygons=np.ones((3, 8)))])
    batch = videos.__getitems__([2, 1])
    assert batch["name"] == ["cow-3", "cat-2"]
    assert batch["frames"][1] == ["cat-2/img/00000001.jpg", "cat-2/img/00000002.jpg"]
    assert batch["boxes"][0].dtype == torch.float64
    assert batch["boxes"][1].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert batch["present"][0].tolist() == [True, False, True]
    assert batch["present"][1] is None
    assert batch["polygons"][0].shape == (3, 8)
    assert batch["polygons"][1] is None
    assert batch["index"].tolist() == [2, 1]
    assert videos[1]["name"] == ["cat-2"]


@pytest.mark.parametrize("first", [[np.nan] * 4, [1, 2, 0, 4], [1, 2, 3, -4], [np.inf, 2, 3, 4]])
def test_a_video_without_a_first_box_cannot_be_evaluated(first):
    boxes = np.array([first, [1, 2, 3, 4]], float)
    with pytest.raises(ValueError, match="root='x': the box of the first frame of 'dog-1' must have a width"):
        TrackingSequences([video(count=2, boxes=boxes)], "root='x'")


def test_boxes_of_later_frames_may_be_unknown():
    boxes = np.array([[1, 2, 3, 4], [np.nan] * 4, [0, 0, 0, 0]])
    assert TrackingSequences([video(boxes=boxes)])[0]["boxes"][0][1].isnan().all()


def test_annotation_without_frames_cannot_be_tracked():
    with pytest.raises(ValueError, match=r"annotations without frames.*: dog-1"):
        TrackingSequences([TrackingSequence("dog-1", (), np.ones((2, 4)))])


def test_two_processes_share_the_videos_out_and_none_is_left_without_a_batch(company):
    videos = [video(name) for name in ("a-1", "b-1", "c-1")]
    found = []
    for rank in (0, 1):
        company(2, rank)
        found += [batch["index"].tolist() for batch in sequence_loader(videos, 2)]
    assert found == [[0, 2], [1]]
    empty = list(sequence_loader(videos[:1], 2))  # still rank 1
    assert [(batch["name"], batch["index"].shape) for batch in empty] == [([], (0,))]


def test_frames_are_in_the_order_people_count(tmp_path):
    for name in ("frame10.JPG", "frame9.jpg", "._frame1.jpg", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.rpartition("/")[2] for path in list_frames(tmp_path)] == ["frame9.jpg", "frame10.JPG"]
    assert sorted(["b1", "a10x", "a9y", "a", "10"], key=natural_key) == ["10", "a", "a9y", "a10x", "b1"]


def test_a_folder_without_frames_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        list_frames(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        list_frames(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4.5\n5,6,7,8\n", "1\t2\t3\t4.5\n5\t6\t7\t8", "1 2  3 4.5\n5 6 7 8\n\n", "1, 2, 3, 4.5\r\n5,6,7,8\r\n",
     "1,2,3,4.5\n5 6 7 8", "1,2,3,4.5,\n5,6,7,8,", "\ufeff1,2,3,4.5\n5,6,7,8"],
)  # fmt: skip
def test_numbers_may_be_separated_in_all_ways_that_occur(tmp_path, text):
    (tmp_path / "groundtruth.txt").write_text(text, "utf-8")
    assert read_rows(tmp_path / "groundtruth.txt").tolist() == [[1, 2, 3, 4.5], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("text", "line"),
    [("1,2,3,4\n1,2,3\n", 2), ("1,2,3,4\n\n1,2,3,4\n", 2), ("1,2,3,4\n1,2,3,x", 2), ("1,,2,3,4", 1), ("1,2,3,inf", 1),
     ("1,2,3,4,5,6,7,8", 1), ("1,2,3,4\n1,2,3,4,5,6,7,8", 2)],
)  # fmt: skip
def test_a_line_that_does_not_parse_is_named(tmp_path, text, line):
    (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"truth.txt', line {line}: expected 4 numbers"):
        read_rows(tmp_path / "truth.txt")


def test_an_empty_ground_truth_is_refused(tmp_path):
    (tmp_path / "truth.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"truth.txt' is empty"):
        read_rows(tmp_path / "truth.txt")


def test_unknown_boxes_are_not_a_number(tmp_path):
    (tmp_path / "truth.txt").write_text("NaN,NaN,NaN,NaN\n1,2,3,4")
    assert np.isnan(read_rows(tmp_path / "truth.txt")).sum(1).tolist() == [4, 0]


@pytest.mark.parametrize("text", ["0,1,1,0", "0\n1\n1\n0\n", "0,1\n1,0", "0 1 1 0\n", "\ufeff0,1,1,0\n"])
def test_flags_may_be_on_one_line_or_on_many(tmp_path, text):
    (tmp_path / "flags.txt").write_text(text, "utf-8")
    assert read_flags(tmp_path / "flags.txt").tolist() == [False, True, True, False]


@pytest.mark.parametrize(("text", "line"), [("0,1,2", 1), ("0\n1\n\nyes", 3), ("0,-1", 1)])
def test_a_flag_that_is_neither_0_nor_1_is_named(tmp_path, text, line):
    (tmp_path / "flags.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"flags.txt', line {line}: expected a 0 or a 1"):
        read_flags(tmp_path / "flags.txt")


@pytest.mark.parametrize(("lines", "frames", "fine"), [(42, 40, True), (43, 40, False), (1010, 1000, True),
                                                       (1020, 1000, False), (1, 0, False), (0, 0, False)])  # fmt: skip
def test_a_small_difference_is_cut_off_and_a_large_one_is_an_error(lines, frames, fine):
    lengths, counts = Lengths(), {"lines in truth.txt": lines, "frames in img": frames}
    if fine:
        assert lengths.shortest("dog-1", counts) == min(lines, frames)
        with pytest.warns(UserWarning, match=rf"dog-1 \({lines} lines in truth.txt, {frames} frames in img\)"):
            lengths.tell()
    else:
        with pytest.raises(ValueError, match=f"'dog-1' has {lines} lines in truth.txt, {frames} frames in img: .* ?"):
            lengths.shortest("dog-1", counts)


def test_nothing_is_said_of_equal_lengths(recwarn):
    lengths = Lengths()
    assert lengths.shortest("dog-1", {"lines": 5, "frames": 5}) == 5
    lengths.tell()
    assert not recwarn
