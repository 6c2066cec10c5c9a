"""Videos in and out: order, laziness, frames that cannot be read, and files that appear only when complete."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_methods.functional import video_writing
from lit_methods.functional.frames import from_rgb, list_frames
from lit_methods.functional.pictures import BadImageError
from lit_methods.functional.video import open_video
from lit_methods.functional.video_writing import VideoWriter, check_video_path, write_video

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 200, 0), (9, 90, 200), (0, 0, 0)]  # RGB


def frames(size: tuple[int, int] = (32, 48)) -> list[Tensor]:
    """Plain frames with a white corner, so that turned or mirrored ones are noticed."""
    pictures = [np.full((*size, 3), colour, np.uint8) for colour in COLOURS]
    for picture in pictures:
        picture[: size[0] // 2, : size[1] // 4] = 255
    return [from_rgb(picture) for picture in pictures]


def folder_of(path: Path, suffix: str = ".png") -> Path:
    write_video(path, frames(), suffix=suffix)
    return path


def test_a_folder_is_read_in_natural_order(tmp_path):
    for number in (10, 9, 100, 1):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "._f1.png").write_bytes(b"left behind by another system")
    (tmp_path / "groundtruth.txt").write_text("1,1,2,2\n")
    video = open_video(tmp_path)
    assert [int(frame[2].max()) for frame in video] == [1, 9, 10, 100]
    assert (len(video), video.size, video.name) == (4, (3, 4), tmp_path.name)
    assert [Path(video.frame_name(index)).name for index in range(4)] == ["f1.png", "f9.png", "f10.png", "f100.png"]
    assert list_frames(tmp_path) == ["f1.png", "f9.png", "f10.png", "f100.png"]


@pytest.mark.parametrize("inner", ["img", "color"])
def test_frames_may_lie_in_the_folder_that_benchmarks_have(tmp_path, inner, monkeypatch):
    folder_of(tmp_path / "car-1" / inner)
    video = open_video(tmp_path / "car-1")
    assert (video.name, len(video)) == ("car-1", len(COLOURS))
    assert Path(video.frame_name(0)).parent.name == inner
    monkeypatch.chdir(tmp_path / "car-1" / inner)
    assert open_video("..").name == "car-1"


@pytest.mark.parametrize("name", ["clip", "clip.gif"])
def test_what_is_written_is_read_again_exactly(tmp_path, name):
    write_video(tmp_path / name, frames(), fps=10)
    video = open_video(tmp_path / name)
    assert (len(video), video.size) == (len(COLOURS), (32, 48))
    assert torch.equal(torch.stack(list(video)), torch.stack(frames()))
    assert torch.equal(torch.stack(list(video)), torch.stack(frames()))  # a second pass


def test_a_film_is_read_again_nearly(tmp_path):
    pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", frames((33, 47)), fps=29.97)
    video = open_video(tmp_path / "a.mp4")
    found = torch.stack(list(video)).float()
    assert video.fps == pytest.approx(29.97, abs=0.01)
    assert (len(video), video.size, len(found)) == (len(COLOURS), (34, 48), len(COLOURS))  # sides become even
    assert (found[:, :, :33, :47] - torch.stack(frames((33, 47))).float()).abs().mean() < 8


def test_a_film_need_not_say_how_long_it_is(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in frames():
            picture = av.VideoFrame.from_ndarray(frame.flip(0).permute(1, 2, 0).contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    video = open_video(tmp_path / "a.mkv")
    assert video.length is None
    assert sum(1 for _ in video) == len(COLOURS)
    with pytest.raises(TypeError, match=r"a\.mkv"):
        len(video)


@pytest.mark.parametrize("name", ["clip", "clip.gif", "clip.mp4"])
def test_reading_from_a_frame_gives_the_same_frames(tmp_path, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    write_video(tmp_path / name, frames())
    video = open_video(tmp_path / name)
    assert torch.equal(torch.stack(list(video.read(4))), torch.stack(list(video))[4:])
    assert list(video.read(len(COLOURS))) == []


def test_frames_are_read_when_they_are_asked_for(tmp_path):
    video = open_video(folder_of(tmp_path / "clip"))
    found = video.read()
    next(found)
    Path(video.frame_name(1)).unlink()
    assert isinstance(next(found), BadImageError)


def test_an_unreadable_frame_is_named_and_the_others_follow(tmp_path):
    folder = folder_of(tmp_path / "clip")
    (folder / "00000002.png").write_bytes(b"no picture")
    video = open_video(folder)
    found = list(video.read())
    assert [isinstance(frame, BadImageError) for frame in found] == [False, False, True, False, False, False]
    assert "00000002.png" in str(found[2])
    with pytest.raises(BadImageError, match=r"00000002\.png"):
        list(video)
    with pytest.raises(BadImageError, match=r"00000002\.png"):
        video.check()
    video.check(decodable=False)


def test_a_gif_that_is_cut_off_has_frames_until_there(tmp_path):
    noise = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    write_video(tmp_path / "a.gif", noise)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) * 2 // 3])
    found = list(open_video(tmp_path / "a.gif").read())
    assert all(isinstance(frame, Tensor) for frame in found[:3])
    assert re.search(r"frame \d of .*a\.gif", str(found[-1]))


def test_damage_inside_a_film_costs_the_frames_it_hits(tmp_path):
    pytest.importorskip("av")
    noise = torch.randint(0, 256, (30, 3, 64, 64), dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", noise)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 3000] = bytes(range(250)) * 12
    (tmp_path / "a.mp4").write_bytes(bytes(data))
    found = list(open_video(tmp_path / "a.mp4").read())
    bad = [frame for frame in found if isinstance(frame, BadImageError)]
    assert bad
    assert len(bad) < 10
    assert isinstance(found[-1], Tensor)
    assert re.search(r"frame \d+ of .*a\.mp4", str(bad[0]))


def test_a_film_that_ends_early_is_told(tmp_path):
    av = pytest.importorskip("av")
    noise = torch.randint(0, 256, (30, 64, 64, 3), dtype=torch.uint8).numpy()
    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:  # its index comes first
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"a\.mp4' ends after \d+ of the 30 frames"):
        assert 5 < sum(isinstance(frame, Tensor) for frame in open_video(tmp_path / "a.mp4").read()) < 25


def test_frames_of_another_size_are_refused_with_both_sizes(tmp_path):
    folder = folder_of(tmp_path / "clip")
    Image.new("RGB", (20, 10)).save(folder / "00000003.png")
    video = open_video(folder)
    for read in (lambda: list(video.read()), video.check):
        with pytest.raises(BadImageError, match=r"frame 3 .*00000003\.png.*20x10.*48x32"):
            read()


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("nowhere.mp4", None, FileNotFoundError, r"nowhere\.mp4"),
        ("notes.txt", b"x", ValueError, r"notes\.txt.*no video.*\.mp4.*folder"),
        ("a.png", b"x", ValueError, r"a\.png.*single picture.*folder"),
        ("a.gif", b"x", BadImageError, r"a\.gif"),
        ("a.gif", b"", BadImageError, r"a\.gif"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, name, content, error, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        open_video(tmp_path / name)


def test_an_empty_folder_and_a_broken_film_are_named(tmp_path):
    with pytest.raises(BadImageError, match="has no frames"):
        open_video(tmp_path)
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"x" * 100)
    with pytest.raises(BadImageError, match=r"a\.mp4"):
        open_video(tmp_path / "a.mp4")


def test_without_av_films_are_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").touch()
    for attempt in (lambda: open_video(tmp_path / "a.mp4"), lambda: check_video_path(tmp_path / "b.mp4")):
        with pytest.raises(ValueError, match=r"pip install 'lit-methods\[video\]'"):
            attempt()
    write_video(tmp_path / "a.gif", frames())  # does without


@pytest.mark.parametrize("name", ["out", "out.gif", "out.mp4"])
def test_a_video_appears_when_it_is_complete_and_not_before(tmp_path, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")
    with VideoWriter(tmp_path / name) as writer:
        writer.add(np.zeros((8, 8, 3), np.uint8))
        assert not (tmp_path / name).exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["out", "out.gif", "out.mp4"])
def test_an_error_on_the_way_leaves_nothing(tmp_path, name):
    if name.endswith("mp4"):
        pytest.importorskip("av")

    def broken():
        yield from frames()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_video(tmp_path / name, broken())
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_cannot_be_begun_leaves_nothing(tmp_path, monkeypatch):
    def begin(path, fps, suffix):
        path.write_bytes(b"a header")
        raise OSError("no encoder")

    monkeypatch.setitem(video_writing._SINKS, ".gif", begin)
    with pytest.raises(OSError, match="no encoder"):
        write_video(tmp_path / "out.gif", frames())
    assert list(tmp_path.iterdir()) == []


def test_a_gif_keeps_the_time(tmp_path):
    write_video(tmp_path / "a.gif", frames() * 5, fps=30)  # 1/30 s is no whole number of 1/100 s
    with Image.open(tmp_path / "a.gif") as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert sum(durations) == 1000
    assert set(durations) == {30, 40}


def test_wrong_ways_to_write(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").touch()
    attempts = {
        r"out\.mkv.*\.mp4": lambda: VideoWriter(tmp_path / "out.mkv"),
        "fps=0": lambda: VideoWriter(tmp_path / "out.gif", fps=0),
        "not empty": lambda: VideoWriter(tmp_path / "full"),
        r"\.bmp": lambda: VideoWriter(tmp_path / "out", suffix=".bmp"),
        "no frames": lambda: write_video(tmp_path / "out.gif", []),
        r"frame 1 is \(4, 5\).*\(4, 4\)": lambda: write_video(
            tmp_path / "out.gif", [torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]
        ),
    }
    for words, attempt in attempts.items():
        with pytest.raises(ValueError, match=words):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_jpegs_are_smaller(tmp_path):
    folder = folder_of(tmp_path / "clip", ".jpg")
    assert len(open_video(folder)) == len(COLOURS)
    assert (next(iter(open_video(folder))).float() - frames()[0].float()).abs().mean() < 12
