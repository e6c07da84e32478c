"""Opens what a stranger uploads: a picture, or a sentence that says why not."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlm.errors import UserError

MAX_BYTES = 30_000_000
MAX_PIXELS = 60_000_000
MAX_ASPECT = 4.0
# A line of pixels, padded, would have thousands of times its area; no model looks at more than this.
MAX_PADDED = 16_000_000
# JPEG covers MPO, which Pillow does not register by its own name.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PAPER = (255, 255, 255)


def open_image(source: str | Path | bytes | None) -> Image.Image:
    """The first frame as upright 8-bit RGB, transparency laid on white, padded to at most 4:1.

    Raises:
        UserError: the file is missing, empty, too large, truncated or no picture.
    """
    if source is None:
        raise UserError("Please choose or upload a picture first.")
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise UserError("The file is empty. Please choose a picture (PNG, JPEG, WebP, GIF, BMP or TIFF).")
    if len(data) > MAX_BYTES:
        raise UserError(f"The file has {len(data) / 1e6:.0f} MB; at most {MAX_BYTES / 1e6:.0f} MB can be opened.")
    try:
        with warnings.catch_warnings():
            # The header is checked below, with a limit of our own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError("The picture is far too large to open. Please make it smaller first.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError("This file is not a picture that can be read (PNG, JPEG, WebP, GIF, BMP or TIFF).") from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UserError(
            f"The picture has {width} x {height} pixels; at most {MAX_PIXELS / 1e6:.0f} megapixels can be opened. "
            "Please make it smaller first."
        )
    try:
        picture.load()
        return to_rgb(ImageOps.exif_transpose(picture))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
        raise UserError("The picture is damaged: the file ends early or holds invalid data. Please save it again.") from error


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"The file is larger than {MAX_BYTES / 1e6:.0f} MB. Please make it smaller first.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"The file {path.name!r} cannot be opened.") from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB on white, padded with the mean border colour to at most ``MAX_ASPECT``."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray((np.clip(np.nan_to_num(values) / top, 0, 1) * 255).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, PAPER)
        picture = Image.alpha_composite(paper, picture)
    return _pad(picture.convert("RGB"))


def _pad(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    wide, high = max(width, round(height / MAX_ASPECT)), max(height, round(width / MAX_ASPECT))
    if (wide, high) == (width, height):
        return picture
    if wide * high > MAX_PADDED:
        shrink = (MAX_PADDED / (wide * high)) ** 0.5
        return _pad(picture.resize((max(1, int(width * shrink)), max(1, int(height * shrink))), Image.Resampling.BICUBIC))
    pixels = np.asarray(picture)
    border = (pixels[:, [0, -1]] if wide > width else pixels[[0, -1]]).reshape(-1, 3).mean(0).round().astype(int)
    canvas = Image.new("RGB", (wide, high), tuple(border.tolist()))
    canvas.paste(picture, ((wide - width) // 2, (high - height) // 2))
    return canvas


def smaller(picture: Image.Image, share: float, cell: int = 28) -> Image.Image:
    """The picture with about ``share`` of its tokens, whole cells of ``cell`` pixels, the aspect ratio kept."""
    width, height = (max(1, round(side / cell * share**0.5)) * cell for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)
