"""Gallery and probes: a CSV, and the folder of SCface."""

import pytest

from datamodules.face_probes import read_probes
from datamodules.scface import read_scface

TABLE = """path,label,group,yaw
a/1.png,Ada,gallery,0
b/1.png,Bob,gallery,0
b/2.png,Bob,far,10
a/2.png,Ada,near,
a/2.png,Ada,far,"2,5"
"""


@pytest.fixture
def table(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{number}.png").touch()

    def write(text):
        (tmp_path / "probes.csv").write_text(text, "utf-8")
        return tmp_path / "probes.csv"

    return write


class TestCSV:
    def test_numbers_follow_the_order_of_the_file(self, table):
        found = read_probes(table(TABLE))
        assert found.files == ["a/1.png", "b/1.png", "b/2.png", "a/2.png", "a/2.png"]
        assert found.labels.tolist() == [0, 1, 1, 0, 0]
        assert found.group.tolist() == [-1, -1, 0, 1, 0]
        assert (found.identities, found.groups) == (["Ada", "Bob"], ("far", "near"))

    def test_paths_may_be_absolute(self, table, tmp_path):
        found = read_probes(table(TABLE.replace("b/2.png", f"{tmp_path}/b/2.png")))
        assert found.files[2] == f"{tmp_path}/b/2.png"

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("path,label,group", "path,labels,group", r"line 1: no column label in 'path,labels,group,yaw'; did you m"),
            ("b/2.png,Bob,far,10", "b/2.png,Bob,far", r"line 4: 3 fields where the first line has 4"),
            ("b/2.png,Bob,far,10", "b/2.png,,far,10", r"line 4: label is empty"),
            ("b/2.png,Bob,far,10", "b/2.png,Bob, ,10", r"line 4: group is empty"),
            ("b/2.png,Bob,far,10", 'b/2.png,Bob,far,"10', r"line 4: it is no line of comma-separated values"),
            ("b/2.png,Bob,far,10", "a/2.png,Bob,far,10", r"line 5: the picture was 'Bob' in line 4; it can be of one"),
            ("near", "far", r"line 6: the picture is in group 'far' already, in line 5"),
            ("near", "gallery", r"line 6: a picture of the gallery is a probe, too \(line 5\)"),
        ],
    )
    def test_what_is_wrong_is_said_with_its_line(self, table, old, new, message):
        with pytest.raises(ValueError, match=rf"probes\.csv', {message}"):
            read_probes(table(TABLE.replace(old, new)))

    @pytest.mark.parametrize("file", ["b/3.png", "c/1.png"])
    def test_a_picture_that_is_not_there(self, table, file):
        with pytest.raises(FileNotFoundError, match=rf"probes\.csv', line 4: no picture '.*/{file}'"):
            read_probes(table(TABLE.replace("b/2.png", file)))

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([0, 1, 2], "has no probes, only the gallery"),
            ([0, 1, 4], "has a gallery of 1 persons; looking up a face needs at least two"),
            ([0, 3, 4], "has a gallery of 0 persons"),
            ([0], "has no probes"),
            ([], "line 1: no column path, label, group in ''"),
        ],
    )
    def test_a_file_that_says_nothing_of_a_network(self, table, lines, message):
        rows = TABLE.splitlines()
        with pytest.raises(ValueError, match=message):
            read_probes(table("\n".join(rows[number] for number in lines)))

    def test_probes_of_strangers(self, table):
        text = TABLE.replace("b/1.png,Bob", "b/1.png,Cy")
        with pytest.raises(
            ValueError, match=r"have probes but no gallery picture, so nobody could find them: Bob\. Add"
        ):
            read_probes(table(text))


@pytest.fixture
def scface(tmp_path):
    """Three subjects as in the archive, the infrared cameras and other things among them."""
    (tmp_path / "mugshots").mkdir()
    for subject in ("001", "002", "010"):
        (tmp_path / "mugshots" / f"{subject}_frontal.JPG").touch()
        for camera in range(1, 9):
            for distance in (1, 2, 3):
                folder = tmp_path / f"distance_{distance}" / f"cam_{camera}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{subject}_cam{camera}_{distance}.jpg").touch()
        (tmp_path / "mugshots" / f"{subject}_L1.jpg").touch()
    return tmp_path


class TestSCface:
    def test_mugshots_and_five_cameras_at_three_distances(self, scface):
        found = read_scface(scface)
        assert found.identities == ["1", "2", "10"]
        assert found.groups == ("d1", "d2", "d3")
        assert found.labels.tolist() == [0] * 16 + [1] * 16 + [2] * 16
        assert found.group.tolist() == ([-1] + [0] * 5 + [1] * 5 + [2] * 5) * 3
        assert found.files[:2] == ["mugshots/001_frontal.JPG", "distance_1/cam_1/001_cam1_1.jpg"]
        assert not any("cam6" in file or "cam7" in file or "cam8" in file for file in found.files)

    def test_subjects_of_the_test(self, scface):
        (scface / "test_subjects.txt").write_text("010\n\n1\n")
        found = read_scface(scface)
        assert found.identities == ["1", "10"]
        assert len(found.files) == 32
        assert not any("002_" in file for file in found.files)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1\nx\n", r"test_subjects\.txt', line 2: a subject must be a whole number from 0 up, got 'x'"),
            ("1\n\n3\n", r"line 3: the folder has no pictures of subject 3"),
            ("1\n2\n001\n", r"line 3: subject 1 is in line 1 already"),
            ("\n", r"test_subjects\.txt' is empty"),
            ("2\n", r"has a gallery of 1 persons"),
        ],
    )
    def test_a_list_of_subjects_that_is_wrong(self, scface, text, message):
        (scface / "test_subjects.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_scface(scface)

    def test_what_is_missing_or_twice_is_said(self, scface):
        (scface / "copy").mkdir()
        (scface / "copy" / "001_cam1_1.png").touch()
        with pytest.raises(
            ValueError, match=r"two files for the same picture, copy/001_cam1_1\.png and distance_1/cam"
        ):
            read_scface(scface)
        (scface / "copy" / "001_cam1_1.png").unlink()
        (scface / "mugshots" / "002_frontal.JPG").unlink()
        with pytest.raises(ValueError, match=r"no mugshot \{id\}_frontal\.jpg of subjects 2$"):
            read_scface(scface)

    def test_a_distance_without_pictures(self, scface):
        for file in scface.rglob("*_cam*_2.jpg"):
            file.unlink()
        with pytest.raises(ValueError, match=r"has no pictures of d2: no \{id\}_cam1\.\.5_2\.jpg"):
            read_scface(scface)

    def test_a_folder_of_something_else(self, tmp_path):
        with pytest.raises(ValueError, match=r"has no pictures of SCface: no names such as 001_frontal\.jpg"):
            read_scface(tmp_path)
