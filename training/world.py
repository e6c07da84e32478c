"""The world that TrimLens-150M knows: pictograms and coloured shapes on varied grounds, drawn in about 3 ms a scene.

A scene carries what is needed to ask about it (its items) and to supervise every visual token (a class per 28 x 28 cell).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from training import icons

CELL = 28
COLORS = {
    "red": (222, 42, 42),
    "orange": (245, 140, 20),
    "yellow": (248, 214, 30),
    "green": (40, 165, 70),
    "blue": (40, 100, 225),
    "purple": (140, 60, 190),
    "black": (20, 20, 24),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
BACKGROUND, IGNORE = 0, -1
# (height, width): multiples of 112, so that the windows of a training batch are one tensor; 64 to 256 visual tokens.
SIZES = ((224, 224), (224, 336), (336, 224), (336, 336), (224, 448), (448, 224), (448, 448))
SIZE_WEIGHTS = (0.52, 0.1, 0.1, 0.12, 0.05, 0.05, 0.06)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


@cache
def classes() -> tuple[str, ...]:
    """Class names by index: the ground, every noun, every colour and shape ("red circle")."""
    return ("background", *icons.names(), *(f"{color} {shape}" for color in COLORS for shape in SHAPES))


@cache
def class_index() -> dict[str, int]:
    """Index by class name."""
    return {name: index for index, name in enumerate(classes())}


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """A random (height, width), as often as in training."""
    return SIZES[rng.choice(len(SIZES), p=np.array(SIZE_WEIGHTS) / sum(SIZE_WEIGHTS))]


@dataclass(frozen=True)
class Item:
    """One thing in a scene; ``x``, ``y`` are its centre as a share of the width and height."""

    name: str
    x: float
    y: float
    side: int

    @property
    def color(self) -> str | None:
        """The colour of a shape; None for a pictogram."""
        return self.name.split()[0] if " " in self.name else None


@dataclass(frozen=True)
class Scene:
    """image uint8 [H, W, 3]; labels int64 [H/28, W/28] (class index, or IGNORE where a cell is barely touched)."""

    image: np.ndarray
    items: tuple[Item, ...]
    labels: np.ndarray


def place(item: Item) -> str | None:
    """The ninth of the picture that holds the item's centre, in words; None where it is too close to a border to call."""
    if any(abs(v * 3 - edge) < 0.12 for v in (item.x, item.y) for edge in (1, 2)):
        return None
    return place_name(int(item.y * 3), int(item.x * 3))


def place_name(row: int, column: int) -> str:
    """("top left", "top", ..., "center", ..., "bottom right") for row, column in 0..2."""
    words = [w for w in (ROWS[row], COLUMNS[column]) if w not in ("middle", "center")]
    return " ".join(words) or "center"


@cache
def _shape_mask(shape: str, side: int) -> np.ndarray:
    big = 4 * side
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    lo, hi, mid = 0.06 * big, 0.94 * big, big / 2
    if shape == "circle":
        draw.ellipse((lo, lo, hi, hi), fill=255)
    elif shape == "square":
        draw.rectangle((lo, lo, hi, hi), fill=255)
    elif shape == "triangle":
        draw.polygon(((mid, lo), (hi, hi), (lo, hi)), fill=255)
    elif shape == "diamond":
        draw.polygon(((mid, lo), (hi, mid), (mid, hi), (lo, mid)), fill=255)
    elif shape == "cross":
        a, b = 0.36 * big, 0.64 * big
        draw.rectangle((a, lo, b, hi), fill=255)
        draw.rectangle((lo, a, hi, b), fill=255)
    else:
        angles = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 0.19, 0.47) * big
        draw.polygon(list(zip(mid + radius * np.sin(angles), mid - radius * np.cos(angles), strict=True)), fill=255)
    return np.asarray(mask.resize((side, side), Image.Resampling.BOX))


@cache
def _photos() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_sample_images  # noqa: PLC0415  (not needed to import the vocabulary)

    return tuple(load_sample_images().images)


def _ground(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A ground, float32 [H, W, 3] in 0..255, that is never so busy that it hides what stands on it."""
    kind = rng.choice(6, p=(0.3, 0.2, 0.12, 0.12, 0.16, 0.1))
    first, second = rng.uniform(30, 255, 3), rng.uniform(30, 255, 3)
    if rng.random() < 0.5:
        first = 200 + 0.2 * first
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == 0:
        mix = np.zeros((height, width), np.float32)
    elif kind == 1:
        angle = rng.uniform(0, 2 * np.pi)
        mix = (np.cos(angle) * xs / width + np.sin(angle) * ys / height + 1) / 2
    elif kind == 2:
        period = rng.uniform(12, 60)
        angle = rng.uniform(0, np.pi)
        mix = 0.35 * (np.sin((np.cos(angle) * xs + np.sin(angle) * ys) * 2 * np.pi / period) > 0)
    elif kind == 3:
        period = int(rng.integers(12, 56))
        mix = 0.3 * (((ys // period) + (xs // period)) % 2)
    elif kind == 4:
        coarse = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9))), np.float32)
        mix = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    else:
        photo = _photos()[rng.integers(2)]
        side = int(rng.integers(120, 400))
        y, x = rng.integers(photo.shape[0] - side), rng.integers(photo.shape[1] - side)
        crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((width, height), Image.Resampling.BILINEAR)
        strength = rng.uniform(0.4, 0.9)
        return np.asarray(crop, np.float32) * strength + first.astype(np.float32) * (1 - strength)
    return (first * (1 - mix[..., None]) + second * mix[..., None]).astype(np.float32)


def _picture(rng: np.random.Generator, name: str, side: int) -> np.ndarray:
    """RGBA uint8 [side, side, 4] of one item."""
    if " " in name:
        color, shape = name.split()
        rgba = np.empty((side, side, 4), np.uint8)
        rgba[..., :3] = np.clip(np.array(COLORS[color]) + rng.normal(0, 10, 3), 0, 255)
        rgba[..., 3] = _shape_mask(shape, side)
        return rgba
    picture = icons.icon(name, icons.ARTISTS[rng.integers(len(icons.ARTISTS))], side)
    return picture[:, ::-1] if rng.random() < 0.5 else picture


def _name(rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        return f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    return icons.names()[rng.integers(len(icons.names()))]


def draw(rng: np.random.Generator, size: tuple[int, int], count: int | None = None, smallest: int = 56) -> Scene:
    """One scene of ``size`` (height, width; multiples of 28) with up to ``count`` items that do not overlap.

    Items are between ``smallest`` and 120 pixels; fewer than ``count`` are placed where the picture is full.
    """
    height, width = size
    count = int(rng.choice(5, p=(0.3, 0.22, 0.2, 0.16, 0.12))) + 1 if count is None else count
    image = _ground(rng, height, width)
    cover = np.zeros((count, height, width), bool)
    items: list[Item] = []
    boxes: list[tuple[int, int, int]] = []
    for _ in range(8 * count):
        if len(items) == count:
            break
        side = int(rng.integers(smallest // 4, 31 if count < 6 else 20)) * 4
        y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
        if any(max(abs(x - bx + (side - b) / 2), abs(y - by + (side - b) / 2)) < 0.46 * (side + b) for by, bx, b in boxes):
            continue
        name = items[-1].name if items and rng.random() < 0.12 else _name(rng)
        picture = _picture(rng, name, side)
        alpha = picture[..., 3:].astype(np.float32) / 255
        spot = image[y : y + side, x : x + side]
        # A white shape on white paper cannot be seen: such an item is not there.
        solid = alpha[..., 0] > 0.5
        if np.abs(spot[solid].mean(0) - picture[..., :3][solid].mean(0)).max() < 28:
            continue
        spot += alpha * (picture[..., :3] - spot)
        cover[len(items), y : y + side, x : x + side] = solid
        items.append(Item(name, (x + side / 2) / width, (y + side / 2) / height, side))
        boxes.append((y, x, side))
    image += rng.normal(0, rng.uniform(0, 5), (1, 1, 3)) + rng.normal(0, 1) * 4
    return Scene(np.clip(image, 0, 255).astype(np.uint8), tuple(items), _labels(cover[: len(items)], items, height, width))


def _labels(cover: np.ndarray, items: list[Item], height: int, width: int) -> np.ndarray:
    labels = np.full((height // CELL, width // CELL), BACKGROUND, np.int64)
    if not items:
        return labels
    share = cover.reshape(len(items), height // CELL, CELL, width // CELL, CELL).mean((2, 4))
    best, most = share.argmax(0), share.max(0)
    index = np.array([class_index()[item.name] for item in items])[best]
    return np.where(most > 0.22, index, np.where(most > 0.03, IGNORE, labels))


def rng_for(seed: int, index: int) -> np.random.Generator:
    """The generator of scene ``index`` of a split; splits have different seeds, so that no scene is shared."""
    return np.random.default_rng((seed, index))
