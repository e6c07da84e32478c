"""Pictograms: build time (npm icon sets -> one sheet per artist in assets/world) and run time (sheets -> RGBA arrays).

``python -m training.icons NODE_MODULES`` redraws the sheets from @iconify-json/{noto,fluent-emoji-flat};
their licences are in NOTICE.
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SHEETS = Path(__file__).resolve().parent.parent / "assets" / "world"
ARTISTS = ("noto", "fluent-emoji-flat")
SIDE = 112
COLUMNS = 12

# Every noun is one token of SmolLM2 with a leading space; where the icon has another name, it is given.
NOUNS = {
    **{
        noun: noun
        for noun in [
            "airplane",
            "banana",
            "bear",
            "bicycle",
            "bird",
            "bus",
            "butterfly",
            "cactus",
            "camel",
            "cat",
            "cloud",
            "cow",
            "crab",
            "dog",
            "duck",
            "elephant",
            "fire",
            "fish",
            "frog",
            "giraffe",
            "guitar",
            "horse",
            "house",
            "key",
            "lion",
            "monkey",
            "mushroom",
            "owl",
            "panda",
            "penguin",
            "pig",
            "rabbit",
            "robot",
            "rocket",
            "snail",
            "spider",
            "strawberry",
            "sun",
            "train",
            "turtle",
            "umbrella",
            "whale",
            "zebra",
        ]
    },
    "apple": "red-apple",
    "book": "green-book",
    "cake": "birthday-cake",
    "car": "automobile",
    "clock": "mantelpiece-clock",
    "heart": "red-heart",
    "tree": "deciduous-tree",
}


def names() -> list[str]:
    """The nouns in a fixed order."""
    return sorted(NOUNS)


@cache
def sheet(artist: str) -> dict[str, np.ndarray]:
    """RGBA uint8 [112, 112, 4] by noun, for one artist."""
    picture = np.asarray(Image.open(SHEETS / f"{artist}.webp").convert("RGBA"))
    wanted = -(-len(NOUNS) // COLUMNS) * SIDE
    if picture.shape[0] != wanted:
        raise ValueError(f"{artist}.webp is {picture.shape[0]} pixels high, {len(NOUNS)} nouns need {wanted}: rebuild the sheets")
    rows = picture.reshape(-1, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 4)
    return dict(zip(names(), rows, strict=False))


@cache
def icon(noun: str, artist: str, side: int) -> np.ndarray:
    """RGBA uint8 [side, side, 4], resized with a filter that keeps edges clean."""
    return np.asarray(Image.fromarray(sheet(artist)[noun]).resize((side, side), Image.Resampling.LANCZOS))


def build(node_modules: Path) -> None:
    """Draws the sheets from the npm packages."""
    import resvg_py  # noqa: PLC0415  (build time only)

    SHEETS.mkdir(parents=True, exist_ok=True)
    for artist in ARTISTS:
        package = json.loads((node_modules / "@iconify-json" / artist / "icons.json").read_text())
        cells = []
        for noun in names():
            entry = package["icons"][NOUNS[noun]]
            left, top = entry.get("left", package.get("left", 0)), entry.get("top", package.get("top", 0))
            width = entry.get("width", package.get("width", 16))
            height = entry.get("height", package.get("height", 16))
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}">{entry["body"]}</svg>'
            )
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
            cells.append(np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((SIDE, SIDE))))
        while len(cells) % COLUMNS:
            cells.append(np.zeros((SIDE, SIDE, 4), np.uint8))
        grid = np.stack(cells).reshape(-1, COLUMNS, SIDE, SIDE, 4).swapaxes(1, 2).reshape(-1, COLUMNS * SIDE, 4)
        Image.fromarray(grid).save(SHEETS / f"{artist}.webp", quality=90, method=6)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
