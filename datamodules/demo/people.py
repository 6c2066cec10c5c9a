"""Small re-identification sets of drawn people, in the layouts of Market-1501 and DukeMTMC-reID.

A person is told by clothes, hair, skin and perhaps a bag; every picture has its own pose, place, size and background.
Each camera has its own colour cast, brightness and sharpness; no camera of one set sees as one of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datamodules.demo.placing import place_set
from lit_methods.functional.draws import permutation, purpose

Colour = tuple[int, int, int]

CLOTHES: tuple[Colour, ...] = (
    (200, 45, 45),
    (225, 130, 40),
    (220, 205, 60),
    (60, 150, 70),
    (60, 170, 175),
    (50, 80, 190),
    (130, 65, 165),
    (215, 120, 165),
    (235, 235, 230),
    (130, 130, 130),
    (45, 45, 50),
    (120, 80, 50),
)
PATTERNS = ("plain", "hoops", "stripes", "halves")
SKINS: tuple[Colour, ...] = ((235, 195, 165), (205, 155, 115), (150, 105, 75), (95, 65, 45))
HAIRS: tuple[Colour, ...] = ((35, 25, 20), (95, 60, 35), (205, 170, 95), (150, 145, 140))
LOOKS = purpose("demo/people")


@dataclass(frozen=True)
class Camera:
    """How a camera sees.

    Args:
        gain: of red, green and blue.
        lift: added to all three, in grey levels.
        blur: radius in 128ths of the height.
        wall: colour of the background.
        floor: colour of the ground.
    """

    gain: tuple[float, float, float]
    lift: float
    blur: float
    wall: Colour
    floor: Colour

    def weaker(self, cast: float) -> "Camera":
        """The same camera with so much of its colours; 0 is a grey room in plain light."""

        def toward_grey(colour: Colour) -> Colour:
            red, green, blue = (round(135 + cast * (value - 135)) for value in colour)
            return red, green, blue

        red, green, blue = (1 + cast * (value - 1) for value in self.gain)
        surfaces = toward_grey(self.wall), toward_grey(self.floor)
        return Camera((red, green, blue), cast * self.lift, self.blur, *surfaces)


DUKE_CAMERAS = (
    Camera((1.05, 1.0, 0.95), 0, 0.4, (150, 155, 150), (110, 108, 100)),
    Camera((0.92, 0.98, 1.06), -8, 0.6, (120, 135, 125), (135, 130, 120)),
    Camera((0.98, 1.03, 0.96), 8, 0.5, (170, 165, 155), (120, 118, 112)),
)
MARKET_CAMERAS = (
    Camera((1.25, 0.92, 0.62), 12, 0.5, (175, 165, 140), (150, 135, 110)),
    Camera((0.62, 0.88, 1.22), -6, 0.9, (110, 130, 150), (90, 100, 115)),
    Camera((0.66, 0.80, 0.56), 4, 1.2, (95, 110, 90), (70, 75, 65)),
    Camera((1.10, 0.85, 1.15), 20, 0.7, (160, 150, 165), (130, 120, 130)),
    Camera((0.85, 1.10, 0.85), -12, 0.8, (130, 150, 125), (100, 110, 95)),
    Camera((0.75, 0.70, 0.78), 30, 1.0, (140, 140, 145), (105, 105, 110)),
)


@dataclass(frozen=True)
class Person:
    """What one recognises somebody by."""

    top: Colour
    second: Colour
    pattern: str
    legs: Colour
    shorts: bool
    skin: Colour
    hair: Colour
    long_hair: bool
    bag: Colour | None
    build: float


@cache
def person(number: int, seed: int = 0) -> Person:
    """The person of a number; the first 132 differ in the colours of their clothes.

    Args:
        number: from 0.
        seed: decides all of them.

    Example:
        >>> person(3) == person(3), person(3) == person(4)
        (True, False)
    """
    draw = np.random.default_rng([seed, number, 0])
    count = len(CLOTHES)
    pairs = [(top, legs) for top in range(count) for legs in range(count) if top != legs]
    top, legs = pairs[permutation(len(pairs), LOOKS, seed)[number % len(pairs)]]
    others = [colour for colour in range(count) if colour != top]
    return Person(
        CLOTHES[top],
        CLOTHES[others[draw.integers(len(others))]],
        PATTERNS[draw.integers(len(PATTERNS))],
        CLOTHES[legs],
        bool(draw.random() < 0.3),
        SKINS[draw.integers(len(SKINS))],
        HAIRS[draw.integers(len(HAIRS))],
        bool(draw.random() < 0.4),
        CLOTHES[draw.integers(count)] if draw.random() < 0.35 else None,
        draw.uniform(0.88, 1.12),
    )


def draw_person(
    who: Person | None, camera: Camera, random: np.random.Generator, size: tuple[int, int] = (128, 64)
) -> Image.Image:
    """Draw one picture of a person.

    Args:
        who: ``None`` draws the background alone, or a part of it.
        camera: that sees them.
        random: decides pose, place, size and background.
        size: height and width in pixels.

    Returns:
        RGB.

    Example:
        >>> draw_person(person(0), MARKET_CAMERAS[0], np.random.default_rng(0)).size
        (64, 128)
    """
    height, width = size
    image = Image.new("RGB", (width, height), _vary(camera.wall, random))
    paint = ImageDraw.Draw(image)
    horizon = height * random.uniform(0.55, 0.8)
    paint.rectangle((0, horizon, width, height), fill=_vary(camera.floor, random))
    for _ in range(random.integers(1, 4)):  # things behind
        left, high = random.uniform(-0.3, 0.9) * width, random.uniform(0, 0.6) * height
        box = (left, high, left + random.uniform(0.1, 0.5) * width, high + random.uniform(0.1, 0.4) * height)
        paint.rectangle(box, fill=_vary(camera.wall, random, 45))
    if who is not None:
        _body(paint, who, random, height, width)
    if camera.blur:
        image = image.filter(ImageFilter.GaussianBlur(camera.blur * height / 128))
    light = np.array(camera.gain) * random.uniform(0.92, 1.08)
    pixels = np.asarray(image) * light + camera.lift + random.normal(0, 4, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _body(paint: ImageDraw.ImageDraw, who: Person, random: np.random.Generator, height: int, width: int) -> None:
    tall = height * random.uniform(0.80, 0.92)
    head_top = (height - tall) * random.uniform(0.2, 0.8)
    middle = width * random.uniform(0.42, 0.58)
    wide = tall * 0.13 * who.build  # half of the shoulders
    stride, swing = random.uniform(0, 0.09) * tall, random.uniform(-0.05, 0.05) * tall
    shade = random.uniform(0.93, 1.07)

    def tone(colour: Colour) -> Colour:
        red, green, blue = (min(255, int(value * shade)) for value in colour)
        return red, green, blue

    def at(share: float) -> float:
        return head_top + share * tall

    leg, knee = int(wide * 0.75), at(0.72)
    for side in (-1, 1):
        foot = (middle + side * (wide * 0.35 + stride), at(0.97))
        hip = (middle + side * wide * 0.4, at(0.50))
        bend = ((hip[0] + foot[0]) / 2, knee)
        paint.line((*hip, *bend, *foot), fill=tone(who.skin if who.shorts else who.legs), width=leg)
        paint.line((*hip, *bend), fill=tone(who.legs), width=int(leg * 1.2))
        paint.rectangle((foot[0] - leg * 0.6, at(0.96), foot[0] + leg * 0.7, at(1.0)), fill=(40, 35, 30))
    left, right, top, bottom = middle - wide, middle + wide, at(0.17), at(0.54)
    for side, move in ((-1, swing), (1, -swing)):
        shoulder, hand = (middle + side * wide, at(0.21)), (middle + side * (wide * 1.25) + move, at(0.50))
        paint.line((*shoulder, *hand), fill=tone(who.top), width=int(wide * 0.5))
        paint.ellipse(
            (hand[0] - wide * 0.25, hand[1], hand[0] + wide * 0.25, hand[1] + wide * 0.5), fill=tone(who.skin)
        )
    paint.rectangle((left, top, right, bottom), fill=tone(who.top))
    if who.pattern == "hoops":
        for step in range(1, 6, 2):
            paint.rectangle((left, at(0.17 + step * 0.062), right, at(0.20 + step * 0.062)), fill=tone(who.second))
    elif who.pattern == "stripes":
        for step in range(1, 6, 2):
            x = left + step / 6 * 2 * wide
            paint.rectangle((x, top, x + wide / 3, bottom), fill=tone(who.second))
    elif who.pattern == "halves":
        paint.rectangle((left, at(0.36), right, bottom), fill=tone(who.second))
    if who.bag is not None:
        side = 1 if random.random() < 0.5 else -1
        x = middle + side * wide
        paint.line((middle - side * wide * 0.6, top, x, at(0.42)), fill=tone(who.bag), width=max(1, int(wide * 0.25)))
        paint.rectangle((x - wide * 0.5, at(0.40), x + wide * 0.5, at(0.56)), fill=tone(who.bag))
    face = tall * 0.062
    if who.long_hair:
        paint.rectangle((middle - face * 1.15, at(0.05), middle + face * 1.15, at(0.22)), fill=tone(who.hair))
    paint.ellipse((middle - face, at(0.02), middle + face, at(0.17)), fill=tone(who.skin))
    paint.chord((middle - face * 1.1, at(0.0), middle + face * 1.1, at(0.13)), 180, 360, fill=tone(who.hair))


def _vary(colour: Colour, random: np.random.Generator, by: int = 14) -> Colour:
    red, green, blue = (min(255, max(0, value + int(random.integers(-by, by + 1)))) for value in colour)
    return red, green, blue


def write_market1501(
    root: str | Path,
    train_ids: int = 40,
    test_ids: int = 24,
    cameras: int = 3,
    train_per_camera: int = 3,
    test_per_camera: int = 2,
    distractors: int = 12,
    junk: int = 6,
    cast: float = 0.4,
    size: tuple[int, int] = (128, 64),
    seed: int = 0,
) -> Path:
    """Write a small set of drawn people in the folders and under the names of Market-1501.

    The cameras differ much in their colours, and all of them from those of :func:`write_duke_mtmc`.

    Args:
        root: gets ``bounding_box_train``, ``query``, ``bounding_box_test`` and ``readme.txt``.
        train_ids: persons to train on.
        test_ids: other persons, to be looked for.
        cameras: 1 to 6.
        train_per_camera: training pictures of each person in each camera.
        test_per_camera: gallery pictures of each test person in each camera, beside one query.
        distractors: gallery pictures of nobody who is looked for, id 0000.
        junk: gallery pictures of id -1.
        cast: how much the cameras differ in colour; 0 not at all, from 0.5 on more than the people do.
        size: height and width in pixels.
        seed: decides the pictures.

    Returns:
        ``root``, to hand to ``Market1501DataModule``.

    Raises:
        ValueError: ``cameras`` is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     root = write_market1501(root, train_ids=1, test_ids=1, cameras=1, train_per_camera=1)
        ...     sorted(path.name for path in (root / "bounding_box_train").iterdir())
        ['0002_c1s1_000001_01.jpg', 'Thumbs.db']
    """
    writer = _Writer(Path(root), tuple(camera.weaker(cast) for camera in MARKET_CAMERAS), cameras, size, (seed, 1))

    def name(pid: int, camera: int, frame: int, box: int) -> str:
        return f"{pid:04d}_c{camera + 1}s{1 + frame % 3 if frame else 1}_{frame * 25 + 1:06d}_{box:02d}.jpg"

    for number in range(train_ids):
        for camera, image in _each(cameras, train_per_camera):
            pid, frame = 2 + 3 * number, number * train_per_camera + image
            writer.picture("bounding_box_train", name(pid, camera, frame, 1 + image % 4), number, camera)
    for number in range(test_ids):
        for camera, image in _each(cameras, test_per_camera + 1):
            pid, frame = 1 + 3 * number, number * (test_per_camera + 1) + image
            folder = "bounding_box_test" if image else "query"
            writer.picture(folder, name(pid, camera, frame, image % 5), train_ids + number, camera)
    for number in range(distractors):
        who, camera, frame = train_ids + test_ids + number, number % cameras, 1000 + number
        writer.picture("bounding_box_test", name(0, camera, frame, 1), who if number % 2 else None, camera)
    for number in range(junk):  # badly cut boxes of persons who are looked for
        camera = number % cameras
        junk_name = name(-1, camera, 2000 + number, 1).replace("-001", "-1")
        writer.picture("bounding_box_test", junk_name, train_ids + number % max(test_ids, 1), camera, cut=True)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        writer.file(f"{folder}/Thumbs.db", b"\xd0\xcf\x11\xe0 no picture")
    writer.file("readme.txt", b"Drawn people in the layout of Market-1501; none of them exists.\n")
    return writer.root


def write_duke_mtmc(
    root: str | Path,
    train_ids: int = 48,
    test_ids: int = 12,
    cameras: int = 2,
    train_per_camera: int = 4,
    test_per_camera: int = 2,
    distractor_ids: int = 6,
    size: tuple[int, int] = (128, 64),
    seed: int = 0,
) -> Path:
    """Write a small set of drawn people in the folders and under the names of DukeMTMC-reID.

    Its cameras differ little. The pictures have sizes of their own, and the persons are others than those of
    :func:`write_market1501`.

    Args:
        root: gets ``bounding_box_train``, ``query`` and ``bounding_box_test``.
        train_ids: persons to train on.
        test_ids: other persons, to be looked for.
        cameras: 1 to 3.
        train_per_camera: training pictures of each person in each camera.
        test_per_camera: gallery pictures of each test person in each camera, beside one query.
        distractor_ids: persons in the gallery whom one camera alone has seen, one picture of each.
        size: usual height and width in pixels.
        seed: decides the pictures.

    Returns:
        ``root``, to hand to ``DukeMTMCDataModule``.

    Raises:
        ValueError: ``cameras`` is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     root = write_duke_mtmc(root, train_ids=1, test_ids=1, cameras=1, train_per_camera=1)
        ...     sorted(path.name for path in (root / "bounding_box_train").iterdir())
        ['0001_c1_f0000001.jpg']
    """
    writer = _Writer(Path(root), DUKE_CAMERAS, cameras, size, (seed, 2), vary=0.25)

    def name(pid: int, camera: int, frame: int) -> str:
        return f"{pid:04d}_c{camera + 1}_f{frame * 120 + 1:07d}.jpg"

    for number in range(train_ids):
        for camera, image in _each(cameras, train_per_camera):
            frame = number * train_per_camera + image
            writer.picture("bounding_box_train", name(1 + 5 * number, camera, frame), number, camera)
    for number in range(test_ids):
        for camera, image in _each(cameras, test_per_camera + 1):
            frame = number * (test_per_camera + 1) + image
            folder = "bounding_box_test" if image else "query"
            writer.picture(folder, name(3 + 5 * number, camera, frame), train_ids + number, camera)
    for number in range(distractor_ids):
        pid, camera = 5 + 5 * number, number % cameras
        writer.picture("bounding_box_test", name(pid, camera, 5000 + number), train_ids + test_ids + number, camera)
    return writer.root


class _Writer:
    """Writes pictures, each from random numbers of its own."""

    def __init__(
        self,
        root: Path,
        known: tuple[Camera, ...],
        cameras: int,
        size: tuple[int, int],
        seed: tuple[int, int],
        vary: float = 0,
    ) -> None:
        if not 1 <= cameras <= len(known):
            raise ValueError(f"cameras must be 1 to {len(known)}, got {cameras}")
        self.root, self.cameras, self.size, self.seed, self.vary = root, known, size, seed, vary
        self.count = 0
        for folder in ("bounding_box_train", "query", "bounding_box_test"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def picture(self, folder: str, name: str, number: int | None, camera: int, cut: bool = False) -> None:
        """One picture of a person, or of nobody; ``cut`` leaves the upper half."""
        self.count += 1
        random = np.random.default_rng([*self.seed, self.count])
        height, width = (round(side * (1 + self.vary * random.uniform(-1, 1))) for side in self.size)
        who = None if number is None else person(number, self.seed[0] * 2 + self.seed[1])
        image = draw_person(who, self.cameras[camera], random, (height, width))
        if cut:
            image = image.crop((0, 0, width, height // 2)).resize((width, height))
        image.save(self.root / folder / name, quality=90)

    def file(self, name: str, content: bytes) -> None:
        """A file that is no picture."""
        (self.root / name).write_bytes(content)


def _each(cameras: int, images: int) -> list[tuple[int, int]]:
    return [(camera, image) for camera in range(cameras) for image in range(images)]


@dataclass(frozen=True)
class Demo:
    """A writer and what is known of its set before it is written.

    Args:
        write: gets the root.
        train_ids: persons of the training set.
        cameras: of the training set.
    """

    write: Callable[[Path], Path]
    train_ids: int
    cameras: int


DEMOS = {"Market-1501": Demo(write_market1501, 40, 3), "DukeMTMC-reID": Demo(write_duke_mtmc, 48, 2)}


def write_once(root: Path, demo: Demo) -> None:
    """Write a set where there is nothing, see :func:`~datamodules.demo.placing.place_set`.

    Args:
        root: a folder that is empty or not there yet.
        demo: what to write.

    Raises:
        ValueError: it cannot be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_once(Path(folder, "people"), Demo(lambda root: write_duke_mtmc(root, 1, 1), 1, 2))
        ...     sorted(path.name for path in Path(folder, "people").iterdir())
        ['bounding_box_test', 'bounding_box_train', 'query']
    """
    place_set(root, demo.write, (root / "bounding_box_train").is_dir, "demo=True")
