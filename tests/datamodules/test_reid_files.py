"""Names of files in, persons and cameras out; what is wrong with a folder is said."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.reid_files import (
    DUKE,
    FOLDERS,
    GALLERY,
    MARKET,
    QUERY,
    TRAIN,
    EvaluationFiles,
    ReIDFiles,
    can_be_held_out,
    check_evaluation,
    has_match,
    hold_out,
    parse_names,
    read_folder,
    unusual_counts,
)


def files(pids, camids):
    names = np.array([f"{number:04d}" for number in range(len(pids))], np.bytes_)
    return ReIDFiles(Path(), names, np.array(pids, np.int64), np.array(camids, np.int64))


def folder(root, name, *names):
    (root / name).mkdir(parents=True, exist_ok=True)
    for file in names:
        (root / name / file).touch()
    return root


class TestNames:
    def test_market(self):
        names = [
            "0002_c1s1_000451_03.jpg",
            "-1_c6s3_000401_00.jpg",
            "0000_c2s1_000151_01.jpg",
            "1501_c6s4_001877_02.jpg.jpg",
        ]
        pids, camids = parse_names(names, MARKET)
        assert (pids.tolist(), camids.tolist()) == ([2, -1, 0, 1501], [0, 5, 1, 5])

    def test_duke(self):
        pids, camids = parse_names(["0005_c2_f0046985.jpg", "7140_c8_f0000001.jpg"], DUKE)
        assert (pids.tolist(), camids.tolist()) == ([5, 7140], [1, 7])

    def test_own_sets_need_person_and_camera_alone(self):
        for layout in (MARKET, DUKE, None):
            pids, camids = parse_names(["17_c3_front door.jpg", "100000_c12.jpg"], layout)
            assert (pids.tolist(), camids.tolist()) == ([17, 100000], [2, 11])

    @pytest.mark.parametrize(
        "bad",
        ["person1.jpg", "0002c1s1_000451_03.jpg", "0002_cXs1_1.jpg", "--1_c1s1.jpg", "0002_c0s1.jpg", "_c1s1.jpg"],
    )
    def test_what_does_not_parse_is_named(self, bad):
        with pytest.raises(ValueError, match=rf"names has 1 of 2 file names that do not parse: {bad}\. They must"):
            parse_names(["0002_c1s1_000451_03.jpg", bad], MARKET)

    def test_the_first_five_and_the_count(self):
        names = ["0002_c1s1_000451_03.jpg", *(f"bad{number}.jpg" for number in range(7))]
        with pytest.raises(ValueError, match=r"here has 7 of 8 .*: bad0.jpg, bad1.jpg, .*, bad4.jpg and 2 more\. They"):
            parse_names(names, MARKET, "here")

    def test_one_set_given_as_the_other(self):
        market, duke = ["0002_c1s1_000451_03.jpg"] * 3, ["0005_c2_f0046985.jpg"] * 3
        with pytest.raises(
            ValueError, match=r"of DukeMTMC-reID, such as 0005_c2_f.*, not of Market-1501\. Use DukeMTMCD"
        ):
            parse_names(duke, MARKET)
        with pytest.raises(
            ValueError, match=r"of Market-1501, such as 0002_c1s1.*, not of DukeMTMC.*Use Market1501Data"
        ):
            parse_names(market, DUKE)
        with pytest.raises(ValueError, match=r"1 of 4 file names that do not parse: 0005_c2_f0046985.jpg"):
            parse_names(market + duke[:1], MARKET)  # a stray one is a bad name
        assert parse_names(market + duke)[0].tolist() == [2] * 3 + [5] * 3

    def test_the_real_training_names(self, shared):
        names = (shared / "data/market1501_ids/bounding_box_train_filenames.txt").read_text().split()
        pids, camids = parse_names(names, MARKET)
        assert (len(pids), len(np.unique(pids)), np.unique(camids).tolist()) == (12936, 751, list(range(6)))
        assert pids.min() > 0
        assert unusual_counts(files(pids, camids), TRAIN, MARKET) is None

    def test_the_real_queries_and_gallery(self, shared):
        ids = np.load(shared / "data/market1501_ids/query_gallery_ids.npz")
        query = files(ids["query_pid"], ids["query_camid"] - 1)
        gallery = files(ids["gallery_pid"], ids["gallery_camid"] - 1)
        assert unusual_counts(query, QUERY, MARKET) is unusual_counts(gallery, GALLERY, MARKET) is None
        assert check_evaluation(EvaluationFiles(query, gallery), "root") == 0


class TestFolders:
    def test_files_are_sorted_and_others_left_out(self, tmp_path):
        names = ["0002_c1s1_000451_03.jpg", "0001_c3s1_000451_03.JPG", "-1_c2s1_000001_01.jpeg"]
        folder(tmp_path, QUERY, *names, "Thumbs.db", "._0002_c1s1_000451_03.jpg", "readme.txt", "0001_c1s1_1_1.png")
        found = read_folder(tmp_path, QUERY, MARKET)
        assert [path.name for path in found.paths()] == [names[2], names[1], names[0]]
        assert (found.pids.tolist(), found.camids.tolist()) == ([-1, 1, 2], [1, 2, 0])
        assert found.path(2) == tmp_path / QUERY / names[0]

    @pytest.mark.parametrize("missing", FOLDERS)
    def test_a_missing_folder_is_named(self, tmp_path, missing):
        from datamodules.reid_files import require_folders

        for name in FOLDERS:
            if name != missing:
                folder(tmp_path, name)
        with pytest.raises(
            FileNotFoundError, match=rf"Market-1501 is incomplete in root='.*': no {missing}\. Unpack Mark"
        ):
            require_folders(tmp_path, MARKET)

    def test_an_empty_folder(self, tmp_path):
        folder(tmp_path, TRAIN, "Thumbs.db")
        with pytest.raises(ValueError, match=r"root='.*': bounding_box_train has no .jpg files"):
            read_folder(tmp_path, TRAIN, DUKE)


class TestMatches:
    def test_by_hand_and_by_a_loop(self):
        random = np.random.default_rng(0)
        query = files(random.integers(-1, 12, 60), random.integers(0, 3, 60))
        gallery = files(random.integers(-1, 9, 25), random.integers(0, 3, 25))
        expected = [
            any(g == q != -1 and c != d for g, d in zip(gallery.pids, gallery.camids, strict=True))
            for q, c in zip(query.pids, query.camids, strict=True)
        ]
        assert has_match(EvaluationFiles(query, gallery)).tolist() == expected
        assert 0 < sum(expected) < 60
        assert check_evaluation(EvaluationFiles(query, gallery), "x") == 60 - sum(expected)

    def test_one_camera_alone_is_refused(self):
        with pytest.raises(ValueError, match=r"root='x': all pictures are from camera 3\. .* would be empty"):
            check_evaluation(EvaluationFiles(files([1], [2]), files([1, 2], [2, 2])), "root='x'")

    def test_nothing_to_look_for_is_refused(self):
        with pytest.raises(ValueError, match="x: 1 queries and 0 gallery pictures are left; it needs both"):
            check_evaluation(EvaluationFiles(files([1], [2]), files([], [])), "x")

    def test_no_match_at_all_is_refused(self):
        with pytest.raises(ValueError, match=r"root='x': none of the 2 queries has a picture .* would be empty"):
            check_evaluation(EvaluationFiles(files([1, 2], [0, 0]), files([1, -1, 0], [0, 1, 1])), "root='x'")


class TestHoldingOut:
    def test_one_query_per_person_and_camera(self):
        random = np.random.default_rng(0)
        train = files(random.integers(1, 9, 80), random.integers(0, 3, 80))
        kept, query, gallery = hold_out(train, np.array([2, 5]), random.permutation(80).astype(np.uint64))
        assert sorted([*np.flatnonzero(kept), *query, *gallery]) == list(range(80))
        assert not np.isin(train.pids[kept], [2, 5]).any()
        pairs = [(p, c) for p, c in zip(train.pids, train.camids, strict=True) if p in (2, 5)]
        assert sorted(zip(train.pids[query], train.camids[query], strict=True)) == sorted(set(pairs))

    def test_who_leaves_a_valid_query(self):
        train = files([1, 1, 2, 2, 2, 3, 3, -1, -1, -1], [0, 1, 0, 0, 1, 0, 0, 0, 0, 1])
        assert can_be_held_out(train).tolist() == [2]
        _, query, gallery = hold_out(train, np.array([2]), np.arange(10).astype(np.uint64))
        assert check_evaluation(EvaluationFiles(train.take(query), train.take(gallery)), "x") == 1
