"""Pictures of single things: shapes in a colour, and pictograms."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from training import icons

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


def picture(rng: np.random.Generator, name: str, side: int, artists: list[str], varied: bool) -> np.ndarray:
    """RGBA uint8 [side, side, 4] of one item: a coloured shape, or a noun as one of ``artists`` drew it; half of them if ``varied``
    turned, sheared and tinted."""
    if " " in name:
        color, shape = name.split()
        rgba = np.empty((side, side, 4), np.uint8)
        rgba[..., :3] = np.clip(np.array(COLORS[color]) + rng.normal(0, 10, 3), 0, 255)
        rgba[..., 3] = _shape_mask(shape, side)
        return rgba
    artist = artists[rng.integers(len(artists))]
    drawn = icons.icon(name, artist, side)
    if artist in icons.SILHOUETTES:
        drawn = drawn.copy()
        drawn[..., :3] = rng.uniform(0, 255, 3) if rng.random() < 0.7 else rng.uniform(0, 60)
    if varied and rng.random() < 0.5:
        drawn = _vary(rng, drawn)
    return drawn[:, ::-1] if rng.random() < 0.5 else drawn


def _vary(rng: np.random.Generator, drawn: np.ndarray) -> np.ndarray:
    """The pictogram turned, sheared, stretched and tinted, as another artist might have drawn it."""
    side = len(drawn)
    angle = rng.uniform(-0.4, 0.4)
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    bend = np.array(((rng.uniform(0.95, 1.25), rng.uniform(-0.2, 0.2)), (0, rng.uniform(0.95, 1.25))))
    matrix = turn @ bend
    shift = side / 2 - matrix @ np.full(2, side / 2)
    image = Image.fromarray(drawn).transform(
        (side, side),
        Image.Transform.AFFINE,
        (*matrix[0], shift[0], *matrix[1], shift[1]),
        Image.Resampling.BILINEAR,
    )
    alpha = image.getchannel("A")
    plain = ImageEnhance.Color(image.convert("RGB")).enhance(rng.uniform(0, 1.6))
    values = np.asarray(plain, np.float32) / 255
    # Mostly near its own colours; a quarter in any, so that a thing is not known by its colour alone.
    angle = rng.uniform(-np.pi, np.pi) if rng.random() < 0.25 else rng.normal(0, 0.35)
    values = np.clip(values @ _hue(angle).T, 0, 1) ** rng.uniform(0.6, 1.6)
    if rng.random() < 0.25:
        values, alpha = _outline(rng, values, alpha)
    return np.dstack([(values * 255).astype(np.uint8), alpha])


def _outline(rng: np.random.Generator, values: np.ndarray, alpha: Image.Image) -> tuple[np.ndarray, Image.Image]:
    """A dark or a light line around what is drawn: colours [side, side, 3] in 0..1, and the wider alpha."""
    wide = alpha.filter(ImageFilter.MaxFilter(3 if len(values) < 72 else 5))
    inside = np.asarray(alpha, np.float32)[..., None] / 255
    line = rng.uniform(0, 0.25) if rng.random() < 0.7 else rng.uniform(0.85, 1)
    return values * inside + line * (1 - inside), wide


def _hue(angle: float) -> np.ndarray:
    """The 3 x 3 matrix that turns colours about the grey axis by ``angle`` radians."""
    cos, sin = np.cos(angle), np.sin(angle) / 3**0.5
    around = np.array(((0, -1, 1), (1, 0, -1), (-1, 1, 0)))
    return cos * np.eye(3) + (1 - cos) / 3 + sin * around
