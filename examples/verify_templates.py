"""The 1:1 protocol of IJB-B and IJB-C on files in their layout: align, embed, one vector per template, TAR at FAR.

Runs as it is, on drawn faces, in seconds: heads of few pixels, tilted by up to 40 degrees, and a network that
was never trained, whose figures say nothing of faces. For IJB leave ``write_ijb`` out, ``root`` being the folder that
holds ``loose_crop`` and ``meta``, and take a trained network: ``Predictor.from_checkpoint(path).module``.
"""

import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torch import Tensor

from datamodules.demo.face_drawing import Light, Pose, draw_face
from datamodules.demo.face_identity import face_identity
from datamodules.ijb_files import read_landmarks, read_template_pairs, read_templates
from datamodules.low_resolution import low_resolution
from lit_methods import FaceRecognition
from lit_methods.functional.face_alignment import align_face
from lit_methods.functional.pictures import read_rgb
from lit_methods.metrics.verification import aggregate_templates, tar_at_far, template_scores

FARS = [0.01, 0.1]  # IJB has millions of pairs, enough for 1e-6


def write_ijb(root: Path, people: int = 20, size: int = 160) -> None:
    """Two templates of each person, of a still picture and two frames of a video each, and all pairs of templates."""
    random = np.random.default_rng(0)
    members, landmarks = [], []
    for folder in ("loose_crop", "meta"):
        (root / folder).mkdir(parents=True)
    for number in range(6 * people):
        name, template, media = f"{number + 1}.jpg", number // 3, number // 3 * 2 + (number % 3 > 0)
        who = face_identity(template // 2)
        tilt, right, down = random.uniform((-40, -0.3, -0.3), (40, 0.3, 0.3))
        light = Light(random.uniform(-80, 80), strength=0.5, gain=tuple(random.uniform(0.6, 1.1, 3)))
        drawn = Image.fromarray(draw_face(who, Pose(0, tilt, (right, down), 0.55), light, size))
        low_resolution(drawn, 8 if number % 3 else 5).save(root / "loose_crop" / name)
        members.append(f"{name} {template} {media}")
        eyes, mouth = who.eye_height, who.mouth_height
        face = [complex(-who.eye_gap, eyes), complex(who.eye_gap, eyes), complex(0, eyes + who.nose_long)]
        face += [complex(-who.mouth_wide, mouth), complex(who.mouth_wide, mouth)]
        places = (np.array(face) * 0.55 * np.exp(1j * np.radians(tilt)) + complex(1 + right, 1 + down)) * size / 2 - 0.5
        landmarks.append(" ".join([name, *(f"{p.real:.2f} {p.imag:.2f}" for p in places), "1.0"]))
    pairs = [f"{a} {b} {int(a // 2 == b // 2)}" for a, b in combinations(range(2 * people), 2)]
    for name, lines in (("face_tid_mid", members), ("name_5pts_score", landmarks), ("template_pair_label", pairs)):
        (root / "meta" / f"ijbb_{name}.txt").write_text("\n".join(lines) + "\n")


@torch.no_grad()
def embeddings(module: FaceRecognition, root: Path, names: list[str], batch_size: int = 64) -> Tensor:
    """Unit vectors of the aligned pictures of these names, in their order."""
    marks = read_landmarks(root / "meta" / "ijbb_name_5pts_score.txt")
    points = dict(zip(marks.images.tolist(), marks.points, strict=True))
    side, rows = module.hparams["input_size"][1], []
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        faces = [align_face(np.asarray(read_rgb(root / "loose_crop" / n)), points[n.encode()], side) for n in batch]
        images = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).to(module.device)
        rows.append(module.embed(images / 255).cpu())
    return torch.cat(rows)


def main() -> None:
    """Write a small set, verify its templates, print TAR at FAR by the official choice of points and a strict one."""
    seed_everything(0)
    root = Path(tempfile.mkdtemp())
    write_ijb(root)
    module = FaceRecognition("tiny", {"width": 8}, input_size=[3, 48, 48], flip=False).eval()  # no mirror: as official

    images, templates, medias = read_templates(root / "meta" / "ijbb_face_tid_mid.txt")
    rows = embeddings(module, root, [name.decode() for name in images.tolist()])
    features, ids = aggregate_templates(rows, torch.from_numpy(templates), torch.from_numpy(medias))
    p1, p2, same = map(torch.from_numpy, read_template_pairs(root / "meta" / "ijbb_template_pair_label.txt"))
    scores = template_scores(features, ids, p1, p2)
    print(f"{len(rows)} pictures, {len(ids)} templates, {len(scores)} pairs, {int(same.sum())} of them genuine")
    for method in ("nearest", "conservative"):
        tar, threshold = tar_at_far(scores, same, FARS, method)
        for far, found, score in zip(FARS, tar.tolist(), threshold.tolist(), strict=True):
            print(f"{method}: TAR {found:.3f} at FAR {far:g}, of scores from {score:.4f} up")


if __name__ == "__main__":
    main()
