import json

import numpy as np
import pytest
from PIL import Image

from datamodules import TrackingBenchmarkDataModule
from datamodules.tracking_files import read_folder, read_folders, read_nfs, read_otb
from datamodules.tracking_json import read_json
from datamodules.uav123_files import read_uav123
from datamodules.vot_files import read_vot

BOXES = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]


def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def write(path, rows, separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(separator.join(map(str, row)) + "\n" for row in rows))


def numbers(sequence):
    return [int(frame.rpartition("/")[2].split(".")[0]) for frame in sequence.frames]


def otb(root, name, frames, truth=BOXES, digits=4, suffix=".jpg", file="groundtruth_rect.txt", separator=","):
    touch(root / name / "img", [f"{number:0{digits}d}{suffix}" for number in frames])
    write(root / name / file, truth, separator)


def test_otb_has_targets_that_share_frames(tmp_path):
    otb(tmp_path, "Jogging", [1, 2, 3], file="groundtruth_rect.2.txt")
    write(tmp_path / "Jogging" / "groundtruth_rect.1.txt", BOXES[::-1], "\t")
    for target in (1, 2):
        otb(tmp_path, "Human4", [1, 2, 3], file=f"groundtruth_rect.{target}.txt")
    otb(tmp_path, "Board", [1, 2, 3], digits=5, separator="\t")
    otb(tmp_path, "KiteSurf", [1, 2, 3], suffix=".png", separator=" ")
    found = {sequence.name: sequence for sequence in read_otb(tmp_path)}
    assert list(found) == ["Board", "Human4-2", "Jogging-1", "Jogging-2", "KiteSurf"]
    assert found["Jogging-1"].boxes.tolist() == BOXES[::-1]
    assert found["Jogging-2"].boxes.tolist() == found["Board"].boxes.tolist() == BOXES
    assert found["Jogging-1"].frames == found["Jogging-2"].frames


def test_otb_counts_a_part_of_the_frames_of_some_sequences(tmp_path):
    otb(tmp_path, "David", range(298, 304), [[number, 1, 1, 1] for number in range(300, 304)])  # a line for each
    otb(tmp_path, "Tiger1", range(1, 9), [[number, 1, 1, 1] for number in range(1, 9)])  # that counts; for all
    otb(tmp_path, "BlurCar1", range(247, 251), [[number, 1, 1, 1] for number in range(247, 251)])
    otb(tmp_path, "Diving", range(214, 231), [[214, 1, 1, 1], [215, 1, 1, 1]])
    found = {sequence.name: sequence for sequence in read_otb(tmp_path)}
    for name, first, last in (("David", 300, 303), ("Tiger1", 6, 8), ("BlurCar1", 247, 250), ("Diving", 214, 215)):
        assert numbers(found[name]) == found[name].boxes[:, 0].tolist() == list(range(first, last + 1))


def test_uav123_cuts_folders_into_sequences(tmp_path):
    touch(tmp_path / "data_seq" / "UAV123" / "bird1", [f"{number:06d}.jpg" for number in range(770, 790)])
    touch(tmp_path / "data_seq" / "UAV123" / "car1_s", ["000001.jpg", "000002.jpg", "000003.jpg"])
    write(tmp_path / "anno" / "UAV123" / "bird1_2.txt", [[1, 2, 3, 4], ["NaN"] * 4, [9, 10, 11, 12]])
    write(tmp_path / "anno" / "UAV123" / "car1_s.txt", BOXES)
    write(tmp_path / "anno" / "UAV123" / "att" / "car1_s.txt", [[1] + [0] * 10 + [1]])
    bird, car = read_uav123(tmp_path)
    assert (bird.name, car.name) == ("bird1_2", "car1_s")
    assert numbers(bird) == [775, 776, 777]
    assert np.isnan(bird.boxes[1]).all()
    assert bird.present is None
    assert numbers(car) == [1, 2, 3]
    assert car.attributes == ("Scale Variation", "Similar Object")
    (tmp_path / "data_seq" / "UAV123" / "car1_s" / "000003.jpg").unlink()
    with pytest.warns(UserWarning, match="car1_s .3 lines in .*2 frames 1 to 3 in"):
        assert len(read_uav123(tmp_path)[1]) == 2


def test_a_folder_of_uav123_that_is_missing_is_not_replaced_by_another(tmp_path):
    for name in ("bike1", "car1"):
        touch(tmp_path / "data_seq" / "UAV123" / name, ["000001.jpg", "000002.jpg", "000003.jpg"])
    for name in ("car1_s", "boat1"):
        write(tmp_path / "anno" / "UAV123" / f"{name}.txt", BOXES)
        with pytest.raises(FileNotFoundError, match=f"UAV123/{name}' does not exist"):
            read_uav123(tmp_path)
        (tmp_path / "anno" / "UAV123" / f"{name}.txt").unlink()


def test_uav123_may_lie_one_folder_deeper(tmp_path):
    touch(tmp_path / "UAV123" / "data_seq" / "UAV123" / "bike1", ["000001.jpg"])
    write(tmp_path / "UAV123" / "anno" / "UAV123" / "bike1.txt", BOXES[:1])
    assert [sequence.name for sequence in read_uav123(tmp_path)] == ["bike1"]


def test_nfs_reads_each_eighth_line_as_corners(tmp_path):
    touch(tmp_path / "bee" / "30" / "bee", [f"{number:05d}.jpg" for number in range(1, 11)])
    rows = [[0, number, 20, number + 30, 60, 0, 0, 1, '"a bee"'] for number in range(78)]
    write(tmp_path / "bee" / "30" / "bee.txt", rows, " ")
    touch(tmp_path / "cup" / "30" / "cup", ["00001.jpg", "00002.jpg"])
    write(tmp_path / "cup" / "30" / "cup.txt", [[0, 1, 2, 4, 6], [1, 1, 2, 5, 7]], " ")
    bee, cup = read_nfs(tmp_path)
    assert bee.boxes.tolist() == [[number, 20, 30, 40] for number in range(0, 78, 8)]
    assert len(bee.frames) == 10
    assert cup.boxes.tolist() == [[1, 2, 3, 4], [1, 2, 4, 5]]
    write(tmp_path / "cup" / "30" / "cup.txt", [[0, 1, 2, 4, 6], [1, 1, 2, 5]], " ")
    with pytest.raises(ValueError, match=r"cup.txt', line 2: expected a number and then x0 y0 x1 y1"):
        read_nfs(tmp_path)


def test_vot_has_polygons_tags_and_a_list(tmp_path):
    square = [[10, 20, 10, 22, 14, 22, 14, 20]]
    for name, folder in (("b", "color"), ("a", ".")):
        touch(tmp_path / name / folder, ["00000001.jpg", "00000002.jpg"])
    write(tmp_path / "b" / "groundtruth.txt", square * 2)
    write(tmp_path / "a" / "groundtruth.txt", [[10, 20, 5, 3]] * 2)
    write(tmp_path / "b" / "camera_motion.tag", [[0], [1]])
    (tmp_path / "b" / "occlusion.tag").touch()
    assert [sequence.name for sequence in read_vot(tmp_path)] == ["a", "b"]
    (tmp_path / "list.txt").write_text("b\na\n")
    b, a = read_vot(tmp_path)
    assert b.frames[0].endswith("/b/color/00000001.jpg")
    assert b.tags["camera_motion"].tolist() == [False, True]
    assert b.tags["occlusion"].tolist() == [False, False]
    assert a.polygons.tolist() == b.polygons.tolist() == square * 2
    assert b.boxes[0].tolist() == [9.5, 19.5, 5, 3]  # its centre x + w / 2 is that of the polygon
    (tmp_path / "list.txt").write_text("b\nc\n")
    with pytest.raises(FileNotFoundError, match=r"list.txt' names sequences without a folder .*: c"):
        read_vot(tmp_path)


def test_boxes_of_polygons_are_those_of_the_official_code(vectors):
    from datamodules.tracking_polygons import boxes_of

    known = np.load(vectors / "siamban" / "region_to_box.npz")
    boxes = boxes_of(known["polys"].astype(np.float64))
    centred = np.concatenate([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
    np.testing.assert_allclose(centred, known["poly_out"], rtol=1e-5)


def test_a_folder_of_frames_needs_no_ground_truth(tmp_path):
    touch(tmp_path / "own", ["2.png", "10.png", "1.png"])
    video = read_folder(tmp_path / "own")
    assert (video.name, numbers(video)) == ("own", [1, 2, 10])
    assert np.isnan(video.boxes).all()
    write(tmp_path / "own" / "groundtruth_rect.txt", BOXES[:1])  # the first box alone
    assert read_folder(tmp_path / "own").first_box.tolist() == BOXES[0]
    assert np.isnan(read_folder(tmp_path / "own").boxes[1:]).all()
    write(tmp_path / "own" / "groundtruth.txt", BOXES)  # is preferred
    assert read_folder(tmp_path / "own").boxes.tolist() == BOXES


def test_a_sequence_of_lasot_or_vot_is_a_folder_of_frames_too(tmp_path):
    touch(tmp_path / "dog-1" / "img", ["00000001.jpg", "00000002.jpg"])
    write(tmp_path / "dog-1" / "groundtruth.txt", BOXES[:2])
    (tmp_path / "dog-1" / "full_occlusion.txt").write_text("0,1\n")
    touch(tmp_path / "ants1" / "color", ["00000001.jpg"])
    write(tmp_path / "ants1" / "groundtruth.txt", [[10, 20, 10, 22, 14, 22, 14, 20]])
    ants, dog = read_folders(tmp_path)
    assert (ants.name, ants.polygons.shape) == ("ants1", (1, 8))
    assert dog.present.tolist() == [True, False]


def test_a_folder_with_another_number_of_lines_is_refused(tmp_path):
    touch(tmp_path, [f"{number}.jpg" for number in range(10)])
    write(tmp_path / "groundtruth.txt", BOXES)
    with pytest.raises(ValueError, match=r"has 3 lines in '.*groundtruth.txt', 10 frames: each frame needs one"):
        read_folder(tmp_path)


def test_json_of_the_official_code_says_who_is_present(tmp_path):
    fields = {
        "video_dir": "dog-1", "init_rect": BOXES[0], "img_names": [f"dog-1/img/0000000{n}.jpg" for n in (1, 2, 3)],
        "gt_rect": BOXES, "attr": ["Fast Motion"], "absent": [1, 1, 0],
    }  # fmt: skip
    (tmp_path / "LaSOT.json").write_text(json.dumps({"dog-1": fields}))
    video = read_json(tmp_path)[0]
    assert video.present.tolist() == [True, True, False]
    assert video.frames[2] == f"{tmp_path}/dog-1/img/00000003.jpg"
    assert video.attributes == ("Fast Motion",)
    assert read_json(tmp_path / "LaSOT.json")[0].boxes.tolist() == BOXES


def test_json_of_vot_finds_frames_in_their_folder_color(tmp_path):
    fields = {"img_names": ["ants1/1.jpg", "ants1/2.jpg"], "gt_rect": [[10, 20, 10, 22, 14, 22, 14, 20]] * 2}
    (tmp_path / "VOT2018.json").write_text(json.dumps({"ants1": fields | {"camera_motion": [0, 1]}}))
    touch(tmp_path / "ants1" / "color", ["1.jpg", "2.jpg"])
    video = read_json(tmp_path)[0]
    assert video.frames[1] == f"{tmp_path}/ants1/color/2.jpg"
    assert video.polygons.shape == (2, 8)
    assert video.tags["camera_motion"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "fault"),
    [("{", "OTB100.json' is no JSON"), ("[]", "must map the name"), ('{"a": {"img_names": []}}', "'a' lacks gt_rect"),
     ('{"a": {"img_names": ["1"], "gt_rect": [[1, 2]]}}', "'a': gt_rect must have four or eight"),
     ('{"a": {"img_names": ["1"], "gt_rect": [[1, 2, 3, 4], [1]]}}', "'a': gt_rect must have four or eight"),
     ('{"a": {"img_names": [], "gt_rect": [[1, 2, 3, 4]]}}', "^'a of .*OTB100.json' has 1 boxes in gt_rect, 0 names")],
)  # fmt: skip
def test_json_that_is_not_of_this_kind_is_refused(tmp_path, text, fault):
    (tmp_path / "OTB100.json").write_text(text)
    with pytest.raises(ValueError, match=fault):
        read_json(tmp_path)


def test_one_json_has_to_be_chosen(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no JSON file"):
        read_json(tmp_path)
    touch(tmp_path, ["a.json", "b.json"])
    with pytest.raises(FileNotFoundError, match=r"has a.json, b.json; name the one"):
        read_json(tmp_path)


@pytest.mark.parametrize("benchmark", ["otb100", "uav123", "nfs", "vot2018", "vot2019", "lasot", "folder", "json"])
def test_a_missing_benchmark_is_named_when_it_is_wanted(tmp_path, benchmark):
    missing = TrackingBenchmarkDataModule(benchmark, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"nowhere' does not exist; it must hold the benchmark {benchmark}"):
        missing.prepare_data()
    with pytest.raises(FileNotFoundError, match="root="):
        TrackingBenchmarkDataModule(benchmark, str(tmp_path)).setup("test")


def test_a_benchmark_is_tested_several_videos_at_a_time(tmp_path):
    for name in ("Deer", "Boy", "Girl"):
        otb(tmp_path, name, [1, 2, 3])
    data = TrackingBenchmarkDataModule("otb100", str(tmp_path), sequences=2, frames=2)
    with pytest.raises(RuntimeError, match=r'setup\("test"\)'):
        data.test_dataloader()
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch["name"] for batch in batches] == [["Boy", "Deer"], ["Girl"]]
    assert [len(frames) for frames in batches[0]["frames"]] == [2, 2]
    assert [sequence.name for sequence in data.evaluation_sequences()] == ["Boy", "Deer", "Girl"]


def test_videos_of_a_benchmark_can_be_chosen(tmp_path):
    for name in ("Deer", "Boy", "Girl"):
        otb(tmp_path, name, [1, 2, 3])
    data = TrackingBenchmarkDataModule("otb100", str(tmp_path), names=["Girl", "Boy"])
    data.setup("test")
    assert [sequence.name for sequence in data.evaluation_sequences()] == ["Girl", "Boy"]
    with pytest.raises(ValueError, match=r"names: 'Girls' not in root=.*did you mean 'Girl'"):
        TrackingBenchmarkDataModule("otb100", str(tmp_path), names=["Girls"]).setup("test")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [({"benchmark": "otb"}, "benchmark must be one of otb100"), ({"sequences": 0}, "sequences must be at least 1"),
     ({"frames": 0}, "frames must be at least 1"), ({"names": []}, "names must be different"),
     ({"names": ["a", "a"]}, "names must be different"), ({"num_workers": -1}, "num_workers must be 0")],
)  # fmt: skip
def test_arguments_out_of_range_are_named(arguments, fault):
    with pytest.raises(ValueError, match=fault):
        TrackingBenchmarkDataModule(**{"benchmark": "otb100", "root": "nowhere"} | arguments)


def test_the_real_sequences_can_be_read_as_folders(shared):
    data = TrackingBenchmarkDataModule("folder", str(shared / "data" / "tracking_sequences" / "person"))
    data.setup("test")
    sizes = {sequence.name: (len(sequence), sequence.image_wh) for sequence in data.evaluation_sequences()}
    assert sizes == {"person-couple": (140, (320, 240)), "person-crossing": (120, (360, 240))}
    assert Image.open(data.evaluation_sequences()[0].frames[139]).size == (320, 240)
