"""Attack a classifier behind a web service that returns nothing but labels with scores, a few at most.

Without arguments it starts a small service of its own on this machine, a classifier of handwritten digits, and makes it
lose sight of some. With --url it attacks yours; ask whoever runs it first, for every query is a real request.

Run: python examples/attack_a_service.py
     python examples/attack_a_service.py --url https://api.example.com/classify --key-from MY_KEY --input my_pictures
"""

import argparse
import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from datamodules.cifar_files import read_digits
from lit_methods.inference import as_image, find_pictures, fit_size
from lit_methods.ppba import HTTPLabelService, Ledger, PPBAAttack, label_score_loss
from lit_methods.ppba.build import low_frequencies
from lit_methods.ppba.eight_bits import levels


class DigitService(BaseHTTPRequestHandler):
    """What a service looks like from inside: a PNG comes in, at most five labels go out, none below ten per cent."""

    network: nn.Module

    def do_POST(self) -> None:
        png = self.rfile.read(int(self.headers["Content-Length"]))
        with torch.no_grad():
            scores = self.network(as_image(Image.open(io.BytesIO(png)))[None])[0].softmax(0)
        best = [int(i) for i in scores.topk(5).indices if scores[i] >= 0.1]
        answer = json.dumps([{"label": f"digit {i}", "score": float(scores[i])} for i in best]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


def train_network() -> nn.Module:
    torch.manual_seed(0)
    widths, layers = [3, 16, 32, 64], []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    images, labels = read_digits(train=True)
    images, target = images / 255, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(12):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), target[batch]).backward()
            optimizer.step()
    return network.eval()


def start_service() -> str:
    DigitService.network = train_network()
    server = ThreadingHTTPServer(("127.0.0.1", 0), DigitService)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="of your service; its answers are read by lit_methods.ppba.service.default_parse")
    parser.add_argument("--key-from", metavar="ENVVAR", help="environment variable with the key, sent as Bearer token")
    parser.add_argument("--encode", choices=["png", "json"], default="png")
    parser.add_argument("--input", nargs="+", metavar="PICTURE", help="files or folders; needed with --url")
    parser.add_argument("--size", type=int, choices=[32, 224, 299], help="side of the pictures sent; 224 with --url")
    parser.add_argument("--eps", type=float, help="largest change of a pixel, of 255; 16 with --url, 48 for the digits")
    parser.add_argument("--top", type=int, default=3, help="so many labels of the clean picture have to disappear")
    parser.add_argument("--max_queries", type=int, default=200, help="per picture")
    parser.add_argument("--min_interval", type=float, default=0.0, help="seconds between two requests")
    parser.add_argument("--out", type=Path, default=Path("runs/service"), help="another folder for another service")
    arguments = parser.parse_args()
    if arguments.url and not arguments.input:
        parser.error("--url needs --input: which pictures?")
    if arguments.key_from and arguments.key_from not in os.environ:
        parser.error(f"--key-from {arguments.key_from}: there is no such environment variable")
    return arguments


def read_pictures(paths: list[str] | None, size: int) -> tuple[list[str], Tensor]:
    if not paths:
        images, labels = read_digits(train=False)
        return [f"{label}_{i}" for i, label in enumerate(labels[:10])], images[:10] / 255
    files = find_pictures(paths)
    images = torch.stack([fit_size(as_image(file), (3, size, size)) for file in files])
    return [f"{file.stem}_{i}" for i, file in enumerate(files)], images


def save_png(image: Tensor, path: Path) -> None:
    """As the service saw it; a JPEG would undo what the attack did."""
    Image.fromarray(levels(image).permute(1, 2, 0).numpy()).save(path)


def told(pairs: list[tuple[str, float]]) -> str:
    return ", ".join(f"{label} {score:.2f}" for label, score in pairs[:3]) or "nothing"


if __name__ == "__main__":
    args = parse_arguments()
    size = args.size or (224 if args.url else 32)
    eps = args.eps or (16 if args.url else 48)  # digits are black and white: less would not show on them
    names, images = read_pictures(args.input, size)
    service = HTTPLabelService(
        args.url or start_service(),
        args.encode,
        headers={"Authorization": f"Bearer {os.environ[args.key_from]}"} if args.key_from else None,
        min_interval=args.min_interval,
        max_queries=len(images) * (args.max_queries + 2),  # with a look at each picture before and after
    )
    before = service(images)
    tops = [{label for label, _ in pairs[: args.top]} for pairs in before]
    seen = [i for i, top in enumerate(tops) if top]
    for i in set(range(len(names))) - set(seen):
        print(f"{names[i]}: left out, the service returns no label that could be lost")

    attack = PPBAAttack(
        low_frequencies(size),
        rho=0.1,
        eps=eps / 255,
        norm="linf",
        max_queries=args.max_queries,
        loss_fn=label_score_loss,
    )
    # Killed halfway? Run it again: what was answered is in the ledger, and is not asked a second time.
    with Ledger(args.out / "ledger.jsonl", {"service": service.url if args.url else "digits"}) as ledger:
        labels, ids = [tops[i] for i in seen], torch.tensor(seen)
        result = attack(service, images[seen], labels, image_ids=ids, ledger=ledger)
    after = service(result.adv)

    for row, i in enumerate(seen):
        save_png(result.adv[row], args.out / f"{names[i]}.png")
        outcome = "success" if result.success[row] else "no success"
        print(f"{names[i]}: {outcome} after {result.queries[row]} queries, {told(before[i])} -> {told(after[row])}")
    print(f"{int(result.success.sum())} of {len(seen)}; {service.queries} requests answered; pictures in {args.out}")
