"""Photographs as grounds: assets/world/photos, from Debian and PyPI packages; authors and licences are in NOTICE."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "world" / "photos"


@cache
def photos() -> tuple[np.ndarray, ...]:
    """RGB uint8 [H, W, 3], 448 pixels on the short side, in a fixed order."""
    return tuple(np.asarray(Image.open(path).convert("RGB")) for path in sorted(FOLDER.glob("*.webp")))
