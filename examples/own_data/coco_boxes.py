"""Boxes as COCO has them, ``FOLDER/instances.json`` and ``FOLDER/images/``: train a detector, test it, draw boxes.

ASFD learns whatever is in the boxes. Without FOLDER on 100 drawn pictures: AP 0.64 in 280 s of one CPU core.
"""

import argparse
import json
import tempfile
from pathlib import Path

import demo
import numpy as np
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from datamodules import WIDERFaceDataModule
from lit_methods import ASFD, Predictor
from lit_methods.functional.pictures import read_rgb

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?", type=Path, help="holds instances.json and images/")
parser.add_argument("--new", nargs="+", type=Path, help="pictures to draw on; if left out four that were put aside")
parser.add_argument("--epochs", type=int, default=60)
args, out, lists = parser.parse_args(), Path("runs/own_boxes"), Path(tempfile.mkdtemp())
seed_everything(0)
folder = (args.folder or demo.coco_boxes()).resolve()
content = json.loads((folder / "instances.json").read_text())
entries = {image["id"]: [image["file_name"]] for image in content["images"]}
for box in content["annotations"]:  # x y w h in whole pixels, and six marks, of which the fourth says "does not count"
    entries[box["image_id"]].append(" ".join(f"{v:.0f}" for v in box["bbox"]) + f" 0 0 0 {box.get('iscrowd', 0)} 0 0")
texts = ["\n".join([name, str(len(boxes)), *boxes]) for name, *boxes in entries.values()]  # as WIDER FACE's lists
(lists / "test.txt").write_text("\n".join(texts[::5]))  # every fifth picture is put aside for the test
(lists / "train.txt").write_text("\n".join(text for number, text in enumerate(texts) if number % 5))
own = {f"{part}_list": str(lists / f"{part}.txt") for part in ("train", "test")}
own |= {"train_images": "images", "test_images": "images", "eval_tools": "none", "val_images": 0, "in_memory": True}
data = WIDERFaceDataModule(str(folder), **own, image_size=160, batch_size=8, num_workers=0)
start = {"optimizer": "adamw", "lr": 0.01, "warmup_steps": 40, "prior": 0.25, "low_threshold": 0.15, "reg_weight": 3.0}
module = ASFD("d0", **start)  # start: what a network wants that begins from nothing and has a few hundred steps
trainer = Trainer(max_epochs=args.epochs, devices=1, gradient_clip_val=10.0, logger=False, enable_checkpointing=False)
trainer.fit(module, datamodule=data)
trainer.test(module, datamodule=data)
trainer.save_checkpoint(out / "boxes.ckpt")
for file in args.new or [folder / "images" / text.split("\n")[0] for text in texts[:20:5]]:
    (found,) = Predictor(module)(file)
    Image.fromarray(module.draw(np.asarray(read_rgb(file)), found)).save(out / f"{file.stem}.png")
