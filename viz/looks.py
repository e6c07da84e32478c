"""Where a scorer looks: pictures with their importance laid over them."""

import numpy as np
from PIL import Image

# Dark where nothing counts; what counts keeps its own colours under an orange tint.
SHADE, TINT = np.array((18.0, 22.0, 40.0)), np.array((255.0, 140.0, 0.0))


def heat(picture: Image.Image, importance: np.ndarray, grid: tuple[int, int]) -> Image.Image:
    """The RGB picture, dark where its importance (float [rows * columns] in 0..1) is low and tinted where it is high."""
    rows, columns = grid
    field = Image.fromarray(importance.astype(np.float32).reshape(rows, columns))
    level = np.asarray(field.resize(picture.size, Image.Resampling.NEAREST))[..., None]
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    seen = pixels * (1 - 0.35 * level) + TINT * 0.35 * level
    return Image.fromarray((seen * (0.2 + 0.8 * level) + SHADE * 0.8 * (1 - level)).astype(np.uint8))


def sheet(pairs: list[tuple[Image.Image, Image.Image]], columns: int = 6, side: int = 224, gap: int = 8) -> Image.Image:
    """Every picture above its heat, ``columns`` pairs a row, each fitted into ``side`` pixels."""
    rows = -(-len(pairs) // columns)
    out = Image.new("RGB", (columns * (side + gap) + gap, rows * (2 * side + 3 * gap) + gap), "white")
    for index, pair in enumerate(pairs):
        row, column = divmod(index, columns)
        for below, picture in enumerate(pair):
            shown = picture.copy()
            shown.thumbnail((side, side))
            x, y = gap + column * (side + gap), gap + row * (2 * side + 3 * gap) + below * (side + gap)
            out.paste(shown, (x + (side - shown.width) // 2, y + (side - shown.height) // 2))
    return out
