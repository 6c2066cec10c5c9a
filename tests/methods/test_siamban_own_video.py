"""The user's own videos: from files and a first box to rows and a film, also where a run goes on from another."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor, nn

from datamodules.tracking_files import read_folder
from lit_methods.cli import main
from lit_methods.functional.frames import from_rgb
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.video import open_video
from lit_methods.functional.video_writing import write_video
from lit_methods.siamban import clip_record, own_video
from lit_methods.siamban.clip_record import ClipRecord
from lit_methods.siamban.clip_rows import ClipRow, read_clip_rows, write_clip_rows
from lit_methods.siamban.own_clips import own_clips
from lit_methods.siamban.own_video import AT_ONCE, OwnVideo
from lit_methods.siamban.runs import start_box, track_sequences
from lit_methods.siamban.tracker import SiamBANTracker

BOX = "30,40,20,16"
FRAMES = 11
MODEL = ["--model", "test_siamban_own_video.Follower", "--trainer.accelerator", "cpu"]


class BrightestPlace(nn.Module):
    """A network of no parameters that sees the target where the search region is red, and its size not at all."""

    template_size, search_size, stride, size = 127, 191, 8, 17

    def template(self, z: Tensor) -> list[Tensor]:
        return [z.mean((2, 3))[..., None, None]]

    def track(self, template: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        seen = F.avg_pool2d(x[:, 2:].contiguous() / 255, 63, 8)  # around pixel 31, 39, ...
        sides = torch.tensor([35.0, 28, 35, 28])[:, None, None]
        return torch.cat([-10 * seen, 10 * seen - 10], 1), sides * template[0].sign().mean() * (1 + seen / 20)


class Follower(OwnVideo, LightningModule):
    """Follows what is red.

    Args:
        broken: whether the network gives no numbers.
    """

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.model = BrightestPlace()
        if broken:
            nothing = torch.full((1, 6, 17, 17), torch.nan)
            self.model.track = lambda template, x: (nothing[:, :2], nothing[:, 2:])

    def tracker(self) -> SiamBANTracker:
        return SiamBANTracker(self.model, window_influence=0.1)


def truth(index: int) -> tuple[int, int, int, int]:
    return 30 + 4 * index, 40 + 2 * index, 20, 16


def clip(path: Path, count: int = FRAMES) -> Path:
    """A red rectangle that moves over grey noise."""
    noise = np.random.default_rng(0).integers(60, 90, (120, 160, 1)).repeat(3, 2).astype(np.uint8)
    pictures = []
    for index in range(count):
        x, y, w, h = truth(index)
        picture = noise.copy()
        picture[y : y + h, x : x + w] = (250, 20, 20)
        pictures.append(from_rgb(picture))
    write_video(path, pictures, fps=10)
    return path


@pytest.fixture
def video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return clip(Path("clip"))


def follow(paths, **options) -> list[ClipRow]:
    """The rows of all frames, without a Trainer."""
    module = Follower()
    batches = module.prepare_inputs(paths, **options)
    rows = [row for number, batch in enumerate(batches) for row in module.predict_step(batch, number)]
    batches.close()
    return [ClipRow(**row) for row in rows]


def predict(capsys, *words: object) -> tuple[int, list[str]]:
    """The exit code of the command, and its lines on stderr."""
    code = main("predict", [*MODEL, *map(str, words)])
    return code, capsys.readouterr().err.splitlines()


def overlap(row: ClipRow, box: tuple[int, int, int, int]) -> float:
    width = min(row.x + row.w, box[0] + box[2]) - max(row.x, box[0])
    height = min(row.y + row.h, box[1] + box[3]) - max(row.y, box[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (row.w * row.h + box[2] * box[3] - both)


def test_a_target_is_followed_through_a_folder(video):
    rows = follow([video], box=[BOX])
    assert [row.frame for row in rows] == list(range(FRAMES))
    assert [Path(row.file).name for row in rows] == [f"{index:08}.png" for index in range(FRAMES)]
    assert rows[0][2:7] == (30.5, 40.5, 20, 16, 1)  # as the official code starts and records it
    assert all(overlap(row, truth(row.frame)) > 0.5 for row in rows)
    assert all(0.5 < row.score <= 1 for row in rows)


def test_rows_are_what_the_tracker_says(video):
    tracker, boxes = Follower().tracker(), []
    frames = list(open_video(video))
    tracker.init(frames[0], (30.5, 40.5, 20, 16))
    for frame in frames[1:]:
        box, score = tracker.track(frame)
        boxes.append([*box.tolist(), score.item()])
    assert [list(row[2:7]) for row in follow([video], box=[BOX])[1:]] == boxes


def test_evaluations_find_the_same_boxes(video):
    box = torch.tensor([[30.1, 40.2, 20.3, 16.4]], dtype=torch.float64)
    frames = [[str(path) for path in sorted(video.iterdir())]]
    track = track_sequences(Follower().tracker(), frames, box)[0]
    rows = torch.tensor([row[2:7] for row in follow([video], box=["30.1,40.2,20.3,16.4"])], dtype=torch.float64)
    assert torch.equal(rows, torch.cat([track.boxes_xywh, track.scores[:, None]], 1))


@pytest.mark.parametrize("kind", ["clip.gif", "clip.mp4"])
def test_films_are_videos_too(video, kind):
    if kind.endswith("mp4"):
        pytest.importorskip("av")
    rows = follow([clip(Path(kind))], box=[BOX])
    assert [row.file for row in rows] == [kind] * FRAMES
    assert all(overlap(row, truth(row.frame)) > 0.5 for row in rows)


def test_the_command_leaves_rows_and_a_film(video, capsys):
    assert predict(capsys, "--input", video, "--box", BOX, "--run_dir", "r", "--out", "film.gif") == (0, [])
    assert [tuple(row) for row in read_clip_rows("r/predictions.csv")] == follow([video], box=[BOX])
    assert Path("r/predictions.csv").read_bytes() == Path("r/videos/clip.csv").read_bytes()
    film = open_video("film.gif")
    assert (len(film), film.size, film.fps) == (FRAMES, (120, 160), 25)
    shown = torch.stack(list(film)).float() - torch.stack(list(open_video(video))).float()
    for index, row in enumerate(read_clip_rows("r/predictions.csv")):  # something is drawn along the box's upper side
        x, y = round(row.x), round(row.y)
        assert shown[index, :, max(0, y - 2) : y + 3, x : x + 20].abs().amax() > 60
    assert not list(Path("r").rglob("*.part"))


def test_by_default_the_film_lies_in_the_runs_directory(video, make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(clip_record, "find_spec", lambda name: None)  # as if av were not installed
    module = Follower()
    make_trainer().predict(module, dataloaders=module.prepare_inputs([video], box=[BOX]))
    assert len(open_video(tmp_path / "videos/clip.gif")) == FRAMES
    (tmp_path / "videos/clip.gif").unlink()
    make_trainer().predict(module, dataloaders=module.prepare_inputs([video], box=[BOX], out="none"))
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["clip.csv"]


@pytest.mark.parametrize(
    ("last", "out"), [(0, "film.gif"), (5, "none"), (5, "film.gif"), (FRAMES - 1, "none"), (FRAMES - 1, "film.gif")]
)
def test_a_run_goes_on_from_any_frame_exactly(video, make_trainer, tmp_path, last, out):
    whole = follow([video], box=[BOX], out="whole.gif")
    write_clip_rows(Path("whole.csv"), whole)
    module = Follower()
    batches = module.prepare_inputs([video], resume="whole.csv", start=last, out=out)
    found = make_trainer().predict(module, dataloaders=batches)
    assert [ClipRow(**row) for rows in found for row in rows] == whole
    assert (tmp_path / "videos/clip.csv").read_bytes() == Path("whole.csv").read_bytes()
    if out != "none":
        assert Path(out).read_bytes() == Path("whole.gif").read_bytes()


def test_going_on_does_not_track_again_what_is_known(video):
    rows = follow([video], box=[BOX])
    write_clip_rows(Path("rows.csv"), [row._replace(score=0.25) for row in rows[:7]])
    assert [row.score for row in follow([video], resume="rows.csv")] == [0.25] * 7 + [row.score for row in rows[7:]]


def test_an_interrupted_run_leaves_rows_from_which_it_goes_on(video, make_trainer, tmp_path):
    module = Follower()
    batches = module.prepare_inputs([video], box=[BOX], out="film.gif")
    make_trainer(limit_predict_batches=2).predict(module, dataloaders=batches)
    rows = tmp_path / "videos/clip.csv"
    assert len(read_clip_rows(rows)) == 2 * AT_ONCE  # on disk before anything is closed
    with pytest.warns(UserWarning, match=rf"'clip' is not complete; --resume {rows} goes on after {2 * AT_ONCE} fr"):
        batches.close()
    assert not Path("film.gif").exists()
    assert not list(Path().rglob("*.part"))
    with rows.open("a") as file:
        file.write("clip/00000008.png,8,61.")  # killed while it wrote
    assert follow([video], resume=str(rows), out="film.gif") == follow([video], box=[BOX])
    assert len(open_video("film.gif")) == FRAMES


def test_a_run_can_begin_later_and_go_on_from_there(video):
    x, y, w, h = truth(3)
    whole = follow([video], box=[f"{x} {y} {w} {h}"], start=3)
    assert [row.frame for row in whole] == list(range(3, FRAMES))
    write_clip_rows(Path("part.csv"), whole[:4])
    assert follow([video], resume="part.csv") == whole
    assert follow([video], resume="part.csv", start=4) == whole


def test_a_bad_frame_ends_the_run_or_keeps_the_box(video):
    whole = follow([video], box=[BOX])
    data = Path("clip/00000007.png").read_bytes()
    Path("clip/00000007.png").write_bytes(data[: len(data) // 2])  # its header is sound
    with pytest.raises(BadImageError, match=r"00000007\.png.*--on_bad_frame hold"):
        follow([video], box=[BOX])
    with pytest.warns(UserWarning, match=r"frames of 'clip', each kept the box before it: 1; .*00000007\.png"):
        rows = follow([video], box=[BOX], on_bad_frame="hold", out="film.gif")
    assert rows[:7] == whole[:7]
    assert rows[7][2:] == (*rows[6][2:6], 0, *rows[6][7:])
    assert overlap(rows[-1], truth(FRAMES - 1)) > 0.5
    assert len(open_video("film.gif")) == FRAMES


def test_a_bad_frame_that_shows_at_once_is_said_before_work_starts(video, capsys):
    Path("clip/00000009.png").write_bytes(b"no picture")
    code, said = predict(capsys, "--input", video, "--box", BOX, "--run_dir", "r")
    assert code == 1
    assert len(said) == 1
    assert "00000009.png" in said[0]
    assert not Path("r/videos").exists()
    with pytest.warns(UserWarning, match=r"before it: 1; .*00000009\.png"):
        assert follow([video], box=[BOX], on_bad_frame="hold")[9].score == 0


def test_a_run_that_is_to_go_on_may_begin_with_a_bad_frame(video, tmp_path):
    Path("clip/00000005.png").write_bytes(b"no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = follow([video], box=[BOX], on_bad_frame="hold")
        for known in (5, 6):  # the bad frame is the next one, or the last one that is known
            write_clip_rows(Path("part.csv"), whole[:known])
            assert follow([video], resume="part.csv", on_bad_frame="hold") == whole


def test_the_first_frame_has_to_be_sound(video):
    Path("clip/00000002.png").write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"00000002\.png"):
        follow([video], box=[BOX], start=2, on_bad_frame="hold")


def test_frames_of_another_size_are_refused_before_work_starts(video):
    Image.new("RGB", (80, 60)).save("clip/00000008.png")
    with pytest.raises(ValueError, match=r"frame 8 of 'clip' \(clip/00000008\.png\) is 80x60, the first one 160x120"):
        follow([video], box=[BOX])


@pytest.mark.parametrize("kind", ["one", "one.gif"])
def test_a_video_of_one_frame_has_one_row(video, kind):
    rows = follow([clip(Path(kind), count=1)], box=[BOX], out="film.gif")
    assert [(row.frame, row.x, row.score) for row in rows] == [(0, 30.5, 1)]
    assert len(open_video("film.gif")) == 1


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (["1,2,3"], "box='1,2,3' must be four numbers"),
        (["1,2,3,x"], "box='1,2,3,x' must be four numbers"),
        (["1,2,nan,4"], r"box=\[1\.0, 2\.0, nan, 4\.0\] must be four finite numbers"),
        (["10,10,0,5"], r"box=\[10\.0, 10\.0, 0\.0, 5\.0\] has no area"),
        (["160,10,9,5"], r"box=\[160\.0, 10\.0, 9\.0, 5\.0\] lies outside of the frames of 'clip', which are 160x120"),
        (["-9,10,9,5"], "outside"),
        (None, "box: missing for 'clip'.*groundtruth.txt.*--box"),
        ([BOX, BOX], "box: given 2 times for 1 inputs"),
    ],
)
def test_a_wrong_box_is_said_with_its_numbers(video, box, words):
    with pytest.raises(ValueError, match=words):
        follow([video], box=box)


def test_the_command_says_it_in_one_line(video, capsys):
    code, said = predict(capsys, "--input", video, "--box=-9,10,9,5")
    assert code == 2
    assert said == [
        "error: box=[-9.0, 10.0, 9.0, 5.0] lies outside of the frames of 'clip', which are 160x120 (width x height)"
    ]
    assert not [path for path in Path("runs").rglob("*") if path.is_file()]


def test_ground_truth_gives_the_first_box(video):
    given = follow([video], box=[BOX])
    Path("clip/groundtruth_rect.txt").write_text("30\t40\t20\t16\n34\t42\t20\t16\n")
    assert follow([video]) == given
    assert follow([video], start=1)[0][:5] == ("clip/00000001.png", 1, 34.5, 42.5, 20)
    x, y, w, h = 30, 40, 20, 16
    Path("clip/groundtruth.txt").write_text(f"{x},{y},{x + w},{y},{x + w},{y + h},{x},{y + h}\n")
    assert follow([video])[0][2:6] == (30, 40, w + 1, h + 1)  # a polygon's sides count one more
    with pytest.raises(ValueError, match=r"groundtruth\.txt' has 1 lines, none for frame 2"):
        follow([video], start=2)
    for text, words in (("1,2,x,4", "must hold 4 or 8"), ("1,2,3", "must hold 4 or 8"), ("nan,1,2,3", "finite")):
        Path("clip/groundtruth.txt").write_text(text)
        with pytest.raises(ValueError, match=f"groundtruth.txt', line 1: .*{words}"):
            follow([video])


@pytest.mark.parametrize("text", ["30,40,20,16,\n" * 2, "30 , 40\t20 16", "10,20,10,40,30,40,30,20\n" * 2])
@pytest.mark.parametrize("name", ["groundtruth.txt", "groundtruth_rect.txt"])
def test_evaluations_of_a_folder_start_from_the_same_box(tmp_path, name, text):
    clip(tmp_path / "car" / "img", count=2)
    (tmp_path / "car" / name).write_text(text)
    clips, _ = own_clips([tmp_path / "car"])
    assert clips[0].box == tuple(start_box(torch.from_numpy(read_folder(tmp_path / "car").first_box)).tolist())


def test_the_ground_truth_may_lie_beside_the_folder_of_frames(tmp_path):
    clip(tmp_path / "car" / "img")
    (tmp_path / "car" / "groundtruth.txt").write_text(BOX)
    assert follow([tmp_path / "car" / "img"]) == follow([tmp_path / "car"])


def test_several_videos_keep_their_boxes_where_one_cannot_be_read(video, capsys):
    Path("empty").mkdir()
    other = clip(Path("more/clip"), count=5)
    words = ["--input", video, "empty", other, "--box", BOX, "--box", "1,2,3,4", "--box", "29,39,22,18"]
    code, said = predict(capsys, *words, "--run_dir", "r", "--out", "films")
    assert code == 1
    assert said == ["error: the folder 'empty' has no frames (.jpeg, .jpg, .png, .bmp, .webp, .ppm, .tif, .tiff)"]
    rows = read_clip_rows("r/predictions.csv")
    assert rows == follow([video], box=[BOX]) + follow([other], box=["29,39,22,18"])
    assert sorted(path.stem for path in Path("films").iterdir()) == ["clip", "clip-2"]
    assert sorted(path.name for path in Path("r/videos").iterdir()) == ["clip-2.csv", "clip.csv"]
    assert follow([video, other], resume="r/predictions.csv", start=3) == rows


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "film.mkv"}, r"out='film\.mkv' must end in \.mp4 or \.gif"),
        ({"out": "clip/00000000.png"}, "must end in"),
        ({"start": -1}, "start=-1"),
        ({"start": FRAMES}, rf"start={FRAMES}: the last frame of 'clip' is {FRAMES - 1}"),
        ({"on_bad_frame": "skip"}, "on_bad_frame='skip'"),
        ({"resume": "rows.csv", "start": 9}, r"start=9: resume has the frames 0 to 2 of 'clip'"),
        ({"resume": "rows.csv", "box": ["1,2,3,4"]}, r"box=.*began with \[30\.0, 40\.0, 20\.0, 16\.0\]"),
    ],
)
def test_wrong_options_are_refused_before_work_starts(video, options, words):
    write_clip_rows(Path("rows.csv"), follow([video], box=[BOX])[:3])
    if "resume" not in options:
        options = {"box": [BOX], **options}
    with pytest.raises(ValueError, match=words):
        Follower().prepare_inputs([video], **options)


def test_one_film_cannot_hold_two_videos_nor_replace_its_source(video):
    gif = clip(Path("a.gif"))
    with pytest.raises(ValueError, match=r"out='film\.gif' is one film, but there are 2 inputs"):
        Follower().prepare_inputs([video, gif], box=[BOX, BOX], out="film.gif")
    with pytest.raises(ValueError, match="is the input itself"):
        Follower().prepare_inputs([gif], box=[BOX], out="./a.gif")


def test_films_in_a_folder_do_not_replace_a_source(video, make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(own_video, "film_suffix", lambda: ".gif")
    first, second = clip(Path("a.gif")), clip(Path("videos/a.gif"))
    with pytest.raises(ValueError, match=r"film 'a\.gif' is the input itself"):
        Follower().prepare_inputs([first], box=[BOX], out=".")
    with pytest.raises(ValueError, match=r"film 'videos/a\.gif' is the input itself"):  # of the second, whose is a-2
        Follower().prepare_inputs([first, second], box=[BOX, BOX], out="videos")
    source, module = second.read_bytes(), Follower()
    with pytest.raises(ValueError, match=r"videos/a\.gif' is the input itself"):  # where films go by default
        make_trainer().predict(module, dataloaders=module.prepare_inputs([second], box=[BOX]))
    assert second.read_bytes() == source


HEADER = "file,frame,x,y,w,h,score\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,frame,x,y\n", "has no column w, h, score"),
        ("", "has no column file"),
        (HEADER + "clip/00000000.png,0,1,2,3,x,1\n", "line 2: a cell is missing or no number"),
        (HEADER + "clip/00000000.png,0,1,2\n", "line 2: a cell is missing or no number"),
        (HEADER + "clip/00000000.png,0,1,2,nan,4,1\n", "line 2: .* is no box"),
        (HEADER + "other/1.png,0,1,2,3,4,1\n", r"holds no rows of 'clip'; it has those of other/1\.png"),
        (HEADER, "holds no rows of 'clip'; it has those of nothing"),
        (HEADER + "clip/00000000.png,0,1,2,3,4,1\nclip/00000002.png,2,1,2,3,4,1\n", "not one after another"),
    ],
)
def test_rows_that_cannot_be_gone_on_from(video, text, words):
    Path("rows.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        Follower().prepare_inputs([video], resume="rows.csv")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        Follower().prepare_inputs([video], resume="nowhere.csv")


def test_wrong_inputs_of_the_command(video, capsys):
    Path("notes.txt").touch()
    code, said = predict(capsys, "--input", "nowhere.gif", "--box", BOX)
    assert (code, said) == (2, ["error: input='nowhere.gif' does not exist"])
    with pytest.raises(ValueError, match=r"'notes\.txt' is no video"):
        Follower().prepare_inputs(["notes.txt"], box=[BOX])


def test_pictures_alone_are_refused(video):
    with pytest.raises(ValueError, match="a tracker needs a video and a first box"):
        Follower().predict_step({"image": torch.zeros(1, 3, 8, 8)}, 0)


def test_a_network_that_diverged_is_said(video):
    module = Follower(broken=True)
    batches = module.prepare_inputs([video], box=[BOX])
    with pytest.raises(MisconfigurationException, match="frame 1 of 'clip' is not finite"):
        module.predict_step(next(iter(batches)), 0)


def test_frames_in_memory_do_not_grow_with_the_video(video):
    module = Follower()
    sizes = [len(batch["frames"]) for batch in module.prepare_inputs([video], box=[BOX])]
    assert sizes == [AT_ONCE] * (FRAMES // AT_ONCE) + [FRAMES % AT_ONCE]


def test_a_long_gif_is_thinned_and_made_smaller_but_keeps_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_record, "GIF_FRAMES", 10)
    monkeypatch.setattr(clip_record, "GIF_SIDE", 80)
    video = open_video(clip(tmp_path / "clip", count=25))
    record = ClipRecord(video, (), None, tmp_path / "a.gif")
    for index, frame in enumerate(video):
        record.show(frame, ClipRow("", index, *map(float, truth(index)), 1.0, 0.0, 0.0))
    record.close()
    film = open_video(tmp_path / "a.gif")
    assert (len(film), film.size) == (9, (60, 80))
    assert len(film) / film.fps == pytest.approx(25 / video.fps, rel=0.1)


def test_a_drawn_frame_shows_its_box(video):
    row = follow([video], box=[BOX])[0]
    picture = np.zeros((120, 160, 3), np.uint8)
    shown = Follower().draw(picture, row._asdict())
    assert shown.shape == picture.shape
    assert shown[40:42, 32:48].any()
    assert not shown[80:, 80:].any()


def test_a_film_that_became_shorter_is_told_from_its_rows(video):
    write_clip_rows(Path("rows.csv"), follow([clip(Path("a.gif"))], box=[BOX]))
    clip(Path("a.gif"), count=4)
    with pytest.raises(ValueError, match=r"resume: has frame 10 of 'a\.gif', which has 4 frames"):
        own_clips(["a.gif"], rows=read_clip_rows("rows.csv"))
