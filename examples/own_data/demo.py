"""Small drawn sets in the formats that people have, so that the scripts beside this one run at once.

Each is written once, below ``data/own_demo/``: look at it, for that is what files of yours should look like.
"""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.demo import write_tracking
from datamodules.demo.face_scenes import face_scene
from datamodules.demo.imagenet import WNIDS
from datamodules.demo.patterns import class_picture
from datamodules.demo.people import MARKET_CAMERAS, draw_person, person
from datamodules.demo.placing import place_set
from datamodules.demo.refer_scenes import refer_scene
from datamodules.demo.refer_sentences import draw_sentences, referring_sentences
from lit_methods.functional.frames import read_frame
from lit_methods.functional.video_writing import write_video

ROOT = Path("data/own_demo")
NAMES = ["alice", "bob", "carol", "dan", "eve", "frank", "grace", "heidi", "ivan", "judy"]


def class_folders(folder: Path = ROOT / "classes", pictures: int = 40) -> Path:
    """``<class>/<picture>.jpg``."""

    def write(draft: Path) -> None:
        for label, name in enumerate(list(WNIDS.values())[:4]):
            (draft / name).mkdir(parents=True)
            random = np.random.default_rng(label)
            for number in range(pictures):
                save(class_picture(label, 80, random)[:64], draft / name / f"{name}{number:02d}.jpg")

    return once(folder, write)


def person_crops(folder: Path = ROOT / "people", persons: int = 40, pictures: int = 3) -> Path:
    """``alice_1_cam2_0031.jpg``: who, seen by which of three cameras, and a number."""

    def write(draft: Path) -> None:
        draft.mkdir()
        for who, camera, picture in product(range(persons), range(3), range(pictures)):
            name = f"{NAMES[who % len(NAMES)]}_{who // len(NAMES) + 1}_cam{camera + 1}_{picture:04d}.jpg"
            random = np.random.default_rng([who, camera, picture])
            draw_person(person(who), MARKET_CAMERAS[camera].weaker(0.4), random).save(draft / name, quality=95)

    return once(folder, write)


def coco_boxes(folder: Path = ROOT / "boxes", pictures: int = 100) -> Path:
    """``images/<picture>.jpg`` and ``instances.json``, as COCO has it and most tools for drawing boxes export it."""

    def write(draft: Path) -> None:
        (draft / "images").mkdir(parents=True)
        images, boxes = [], []
        for number in range(pictures):
            picture, faces = face_scene("train", number)
            save(picture, draft / "images" / f"{number:04d}.jpg")
            height, width = picture.shape[:2]
            images.append({"id": number, "file_name": f"{number:04d}.jpg", "width": width, "height": height})
            boxes += [{"image_id": number, "category_id": 1, "bbox": list(face.box), "iscrowd": 0} for face in faces]
        annotations = [{"id": number, **box} for number, box in enumerate(boxes)]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "face"}]}
        (draft / "instances.json").write_text(json.dumps(content))

    return once(folder, write)


def videos(folder: Path = ROOT / "videos", train: int = 8, frames: int = 40) -> Path:
    """Videos with their boxes in the layout of LaSOT, to train a tracker on, and one that is kept from it."""
    return once(folder, lambda draft: write_tracking(draft, train, 1, frames))


def film(root: Path, file: Path) -> str:
    """Write the video that was kept from training as a film; returns its first box, ``x,y,w,h``."""
    name = (root / "testing_set.txt").read_text().split()[0]
    folder = root / name.rpartition("-")[0] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    write_video(file, map(read_frame, sorted((folder / "img").iterdir())), fps=12)
    return (folder / "groundtruth.txt").read_text().split()[0]


def sentences(folder: Path = ROOT / "sentences", pictures: int = 400) -> Path:
    """``sentences.tsv`` beside its pictures: picture, sentence, box x,y,w,h and, where it is known, the outline."""

    def write(draft: Path) -> None:
        draft.mkdir()
        rows = []
        for number in range(pictures):
            picture, shapes = refer_scene("train", number)
            save(picture, draft / f"{number:04d}.jpg")
            random = np.random.default_rng(number)
            for which, shape in enumerate(shapes):
                x1, y1, x2, y2 = shape.box
                box, outline = f"{x1},{y1},{x2 - x1},{y2 - y1}", ",".join(f"{v:g}" for v in shape.outline.ravel())
                told = draw_sentences(referring_sentences(shapes, which, picture.shape[1::-1]), 2, random)
                rows += [f"{number:04d}.jpg\t{sentence}\t{box}\t{outline}\n" for sentence in told]
        (draft / "sentences.tsv").write_text("".join(rows))

    return once(folder, write)


def once(folder: Path, write: Callable[[Path], object]) -> Path:
    """Write a set where there is none yet."""
    if not folder.exists():
        place_set(folder, write, folder.exists)
    return folder


def save(picture: np.ndarray, file: Path) -> None:
    Image.fromarray(picture).save(file, quality=95)
