"""Pictures of one to three coloured shapes with their captions, drawn from a seed.

    python -c "from scripts.sample.pictures import draw; picture, caption = draw(7); picture.save('7.png')"

The same seed always gives the same picture. Captions are unambiguous, so that an answer is right or wrong as a whole.
"""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128
FRESH_SEED = 10_000_000  # pictures for measuring start here; training uses smaller seeds
EVAL_SEED = 20_000_000  # the bundled pictures that evaluate
CALIBRATION_SEED = 30_000_000  # the bundled pictures that calibrate

COLOURS = {
    "red": (208, 32, 36),
    "orange": (240, 136, 24),
    "yellow": (238, 222, 44),
    "green": (36, 148, 62),
    "blue": (36, 74, 206),
    "purple": (136, 42, 160),
    "black": (14, 14, 16),
    "white": (250, 250, 250),
}
RADII = {"small": (7, 9), "large": (15, 19)}

Point = tuple[float, float]


def _polygon(angles: list[float], radii: list[float]) -> list[Point]:
    return [(r * math.sin(math.radians(a)), -r * math.cos(math.radians(a))) for a, r in zip(angles, radii, strict=True)]


CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
OUTLINES: dict[str, list[Point]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "diamond": [(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)],
    "cross": [(x / 3, y / 3) for x, y in CROSS],
    "star": _polygon([36.0 * i for i in range(10)], [1.1, 0.45] * 5),
}
SHAPES = ["circle", *OUTLINES]


@dataclass(frozen=True)
class Shape:
    """One shape: what the caption says about it, and its radius in pixels."""

    size: str
    colour: str
    name: str
    radius: int

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.name}"


@dataclass(frozen=True)
class Layout:
    """The centres of the shapes, in fractions of the side, and the sentence that describes them."""

    centres: tuple[Point, ...]
    sentence: str


LAYOUTS = {
    1: [Layout(((0.5, 0.5),), "{0}")],
    2: [
        Layout(((0.27, 0.5), (0.73, 0.5)), "{0} left of {1}"),
        Layout(((0.5, 0.27), (0.5, 0.73)), "{0} above {1}"),
    ],
    3: [
        Layout(((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)), "{0}, {1} and {2} in a row"),
        Layout(((0.5, 0.18), (0.5, 0.5), (0.5, 0.82)), "{0}, {1} and {2} in a column"),
        Layout(((0.27, 0.27), (0.73, 0.27), (0.5, 0.73)), "{0} left of {1}, both above {2}"),
        Layout(((0.27, 0.73), (0.73, 0.73), (0.5, 0.27)), "{0} left of {1}, both below {2}"),
    ],
}
JITTER = {1: 40, 2: 10, 3: 3}


def _random_shape(rng: random.Random) -> Shape:
    size = rng.choice(list(RADII))
    return Shape(size, rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.randint(*RADII[size]))


def _paint(canvas: ImageDraw.ImageDraw, shape: Shape, centre: Point, rng: random.Random) -> None:
    x, y = centre
    colour = tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in COLOURS[shape.colour])
    if shape.name == "circle":
        canvas.ellipse((x - shape.radius, y - shape.radius, x + shape.radius, y + shape.radius), fill=colour)
        return
    canvas.polygon([(x + shape.radius * dx, y + shape.radius * dy) for dx, dy in OUTLINES[shape.name]], fill=colour)


def draw(seed: int, number: int | None = None) -> tuple[Image.Image, str]:
    """Draw the picture of a seed.

    Args:
        seed: identifies the picture.
        number: number of shapes; default: one, two or three, by the seed.

    Returns:
        An RGB picture of 128 x 128 pixels and its caption.
    """
    rng = random.Random(seed)
    number = number or rng.choice((1, 2, 2, 3, 3, 3))
    layout = rng.choice(LAYOUTS[number])
    grey = rng.randint(105, 175)
    picture = Image.new("RGB", (SIDE, SIDE), tuple(grey + rng.randint(-8, 8) for _ in range(3)))
    canvas = ImageDraw.Draw(picture)
    shapes = [_random_shape(rng) for _ in layout.centres]
    for shape, (x, y) in zip(shapes, layout.centres, strict=True):
        centre = tuple(round(SIDE * at) + rng.randint(-JITTER[number], JITTER[number]) for at in (x, y))
        _paint(canvas, shape, (centre[0], centre[1]), rng)
    return picture, layout.sentence.format(*shapes)


def write_pictures(folder: Path, first_seed: int, count: int, question: str) -> None:
    """Write `picture-00.png` and so on, with one to three things in turn, and captions.json with the question."""
    captions = {}
    for index in range(count):
        picture, caption = draw(first_seed + index, number=index % 3 + 1)
        name = f"picture-{index:02d}.png"
        picture.save(folder / name, optimize=True)
        captions[name] = caption
    (folder / "captions.json").write_text(json.dumps({"question": question, "captions": captions}, indent=1) + "\n")


def draw_set(count: int) -> tuple[np.ndarray, list[str]]:
    """Return the pictures of seeds 0 to count-1 as uint8 (count, 128, 128, 3), and their captions."""
    pixels, captions = np.empty((count, SIDE, SIDE, 3), np.uint8), []
    for seed in range(count):
        picture, caption = draw(seed)
        pixels[seed] = picture
        captions.append(caption)
    return pixels, captions
