"""What scenes stand on: plain, shaded, striped, checked and cloudy grounds, and photographs."""

import numpy as np
from PIL import Image

from training import photos

KINDS = {"plain": 0.24, "shaded": 0.16, "striped": 0.1, "checked": 0.1, "cloudy": 0.14, "photograph": 0.26}


def draw_kind(rng: np.random.Generator) -> str:
    """One of ``KINDS``, as often as it says."""
    return tuple(KINDS)[rng.choice(len(KINDS), p=tuple(KINDS.values()))]


def ground(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """A ground of that kind, float32 [H, W, 3] in 0..255, that is never so busy that it hides what stands on it."""
    first, second = rng.uniform(30, 255, 3), rng.uniform(30, 255, 3)
    if rng.random() < 0.5:
        first = 200 + 0.2 * first
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    if kind == "plain":
        mix = np.zeros((height, width), np.float32)
    elif kind == "shaded":
        angle = rng.uniform(0, 2 * np.pi)
        mix = (np.cos(angle) * xs / width + np.sin(angle) * ys / height + 1) / 2
    elif kind == "striped":
        period = rng.uniform(12, 60)
        angle = rng.uniform(0, np.pi)
        mix = 0.35 * (np.sin((np.cos(angle) * xs + np.sin(angle) * ys) * 2 * np.pi / period) > 0)
    elif kind == "checked":
        period = int(rng.integers(12, 56))
        mix = 0.3 * (((ys // period) + (xs // period)) % 2)
    elif kind == "cloudy":
        coarse = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9))), np.float32)
        mix = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    else:
        photo = photos.photos()[rng.integers(len(photos.photos()))]
        side = int(rng.integers(120, min(photo.shape[:2])))
        y, x = rng.integers(photo.shape[0] - side), rng.integers(photo.shape[1] - side)
        crop = Image.fromarray(photo[y : y + side, x : x + side]).resize((width, height), Image.Resampling.BILINEAR)
        strength = rng.uniform(0.4, 0.9)
        return np.asarray(crop, np.float32) * strength + first.astype(np.float32) * (1 - strength)
    return (first * (1 - mix[..., None]) + second * mix[..., None]).astype(np.float32)
