"""Fonts: 116 families and 10 bolds in assets/world/fonts, as the npm packages @fontsource/* ship them (Latin, woff2).

Their licences are in NOTICE.
"""

from functools import cache, lru_cache
from pathlib import Path

from PIL import ImageFont

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "world" / "fonts"
# A sans, a serif and a hand.
_HELD_OUT = ("inter", "lora", "patrick-hand")


@cache
def names() -> tuple[str, ...]:
    """The fonts of training in a fixed order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.woff2") if path.stem not in _HELD_OUT))


def held_out() -> tuple[str, ...]:
    """The fonts kept for tests; no other weight of their families is in :func:`names`."""
    return _HELD_OUT


# Opening one takes 2 ms, keeping one 60 kB.
@lru_cache(4096)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font by name at ``size`` pixels."""
    return ImageFont.truetype(FOLDER / f"{name}.woff2", size)
