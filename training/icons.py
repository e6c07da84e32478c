"""Pictograms: build time (npm icon sets -> one sheet per artist in assets/world) and run time (sheets -> RGBA arrays).

``python -m training.icons NODE_MODULES`` redraws the sheets from the npm packages of the artists (@iconify-json and, for one,
@lobehub); their licences are in NOTICE.
"""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

SHEETS = Path(__file__).resolve().parent.parent / "assets" / "world"
ARTISTS = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
# These draw for training only, and not every noun: the more hands a noun is seen from, the better one never seen is recognised.
COLOURED = ("emojione", "fxemoji", "streamline-emojis", "noto-v1", "emojione-v1", "fluent-emoji-3d")
# Drawn in black, shown in any colour.
SILHOUETTES = ("fluent-emoji-high-contrast", "emojione-monotone", "game-icons")
EXTRAS = (*COLOURED, *SILHOUETTES)
# Hands that redraw what another of the artists drew: what is held out of the one is held out of the other.
AFTER = {"noto-v1": "noto", "fluent-emoji-3d": "fluent-emoji-flat", "fluent-emoji-high-contrast": "fluent-emoji-flat"}
# What they draw as something else: a piano's keys, a face, a programme's window; a flag, hemp, an earpiece.
MISNAMED = {
    "fxemoji": ("keyboard", "sunglasses", "window"),
    "streamline-emojis": ("turkey", "leaf", "headphones"),
    "noto-v1": ("laptop",),
    "emojione-v1": ("keyboard", "window", "backpack", "shield"),
    "game-icons": (
        *("butter", "butterfly", "crab", "fountain", "moon", "olive", "phone", "piano"),
        *("sunglasses", "volcano", "watermelon", "worm", "wrench"),
    ),
}
SIDE = 96
COLUMNS = 16

# Every noun is one token of SmolLM2 with a leading space; where the icon has another name, it follows the colon.
# No noun is here twice under another name, and none that an artist draws as something else (a scroll wheel for "scroll").
_NOUNS = """
airplane ambulance anchor ant apple:red-apple avocado axe baby backpack bacon bag:handbag ball:soccer-ball balloon banana baseball
basket basketball bat bathtub battery beans bear bed bee:honeybee beer:beer-mug bell bicycle bird boat:sailboat bomb bone
book:green-book boot:womans-boot bottle:bottle-with-popping-cork bowl:bowl-with-spoon bread broccoli broom brush:paintbrush bucket
bulb:light-bulb bus butter butterfly cactus cake:birthday-cake calendar camel camera candle candy canoe car:automobile carrot
cart:shopping-cart castle cat chain:chains chair cheese:cheese-wedge cherries chicken chocolate:chocolate-bar church
clock:mantelpiece-clock cloud coconut coin compass cookie corn:ear-of-corn couch:couch-and-lamp cow crab crocodile crown cucumber
cup:hot-beverage deer dice:game-die dinosaur:sauropod dog dolphin donkey door dove dragon dress drum duck eagle ear egg eggplant
elephant envelope eye feather fire fireworks fish flag:triangular-flag flashlight flower:hibiscus fly fountain fox
fries:french-fries frog garlic gear ghost gift:wrapped-gift giraffe glasses globe:globe-showing-europe-africa goat gorilla grapes
guitar hammer hand:raised-hand hat:top-hat headphones:headphone heart:red-heart helicopter horse hospital house ice jeans
jellyfish kangaroo key keyboard kite knife:kitchen-knife ladder laptop leaf:maple-leaf lemon leopard lightning:high-voltage lion
lobster lock:locked luggage magnet microphone microscope milk:glass-of-milk mirror money:money-bag monkey moon:crescent-moon
mosque motorcycle mountain mouse mouth mushroom newspaper nose notebook octopus olive onion owl palm:palm-tree pancakes panda
parachute parrot peach peanuts pear pen pencil penguin pepper:hot-pepper phone:mobile-phone piano:musical-keyboard pie pig
pineapple pizza plant:potted-plant popcorn potato printer pumpkin:jack-o-lantern puzzle:puzzle-piece rabbit radio rainbow
rhino:rhinoceros rice:cooked-rice ring robot rock rocket rose ruler:straight-ruler salt sandwich saw:carpentry-saw scissors shark
sheep:ewe shield ship shirt:t-shirt shoe:running-shoe shower shrimp skate:ice-skate skull snail snake snow:snowflake socks spider
spoon squirrel:chipmunk strawberry sun sunflower sunglasses sushi sword:dagger syringe target:bullseye taxi telephone telescope
television tent thermometer ticket tie:necktie tiger toilet tomato toolbox tooth toothbrush tornado tractor train
tree:deciduous-tree trophy truck:delivery-truck trumpet turkey turtle umbrella violin volcano volleyball watch watermelon whale
wheel window wine:wine-glass wolf worm wrench yarn zebra
"""
NOUNS = {noun: icon or noun for noun, _, icon in (word.partition(":") for word in _NOUNS.split())}

# Plurals and what is not counted: "some grapes", not "a grapes".
_UNCOUNTED = """
bacon beans bread broccoli butter candy cheese cherries chocolate corn fire fireworks fries garlic glasses grapes headphones ice
jeans lightning luggage milk money pancakes peanuts popcorn rice salt scissors snow socks sunglasses sushi wine yarn
"""
UNCOUNTED = frozenset(_UNCOUNTED.split())


def names() -> list[str]:
    """The nouns in a fixed order."""
    return sorted(NOUNS)


@cache
def held_out(noun: str, artist: str) -> bool:
    """Whether this drawing is kept for tests: a tenth of the artists' drawings, never two of one noun."""
    artist = AFTER.get(artist, artist)
    first, second = hashlib.sha256(noun.encode()).digest()[:2]
    return first < 0.1 * 256 * len(ARTISTS) and ARTISTS[second % len(ARTISTS)] == artist


@cache
def sheet(artist: str) -> dict[str, np.ndarray]:
    """RGBA uint8 [96, 96, 4] by noun, for one artist; one of the extra artists leaves nouns out."""
    picture = np.asarray(Image.open(SHEETS / f"{artist}.webp").convert("RGBA"))
    wanted = -(-len(NOUNS) // COLUMNS) * SIDE
    if picture.shape[0] != wanted:
        raise ValueError(f"{artist}.webp is {picture.shape[0]} pixels high, {len(NOUNS)} nouns need {wanted}: rebuild the sheets")
    rows = picture.reshape(-1, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 4)
    return {noun: drawn for noun, drawn in zip(names(), rows, strict=False) if drawn[..., 3].any()}


# All sides of all drawings would be gigabytes: 4,096 of them are about 120 MB.
@lru_cache(4096)
def icon(noun: str, artist: str, side: int) -> np.ndarray:
    """RGBA uint8 [side, side, 4], resized with a filter that keeps edges clean."""
    return np.asarray(Image.fromarray(sheet(artist)[noun]).resize((side, side), Image.Resampling.LANCZOS))


def build(node_modules: Path, artists: tuple[str, ...] = (*ARTISTS, *EXTRAS)) -> None:
    """Draws the sheets from the npm packages."""
    SHEETS.mkdir(parents=True, exist_ok=True)
    for artist in artists:
        draw = _rendered(node_modules) if artist == "fluent-emoji-3d" else _drawn(node_modules, artist)
        cells = [np.zeros((SIDE, SIDE, 4), np.uint8)] * (-(-len(NOUNS) // COLUMNS) * COLUMNS)
        for index, noun in enumerate(names()):
            if noun not in MISNAMED.get(artist, ()) and (drawn := draw(noun)):
                cells[index] = np.asarray(drawn.convert("RGBA"))
        grid = np.stack(cells).reshape(-1, COLUMNS, SIDE, SIDE, 4).swapaxes(1, 2).reshape(-1, COLUMNS * SIDE, 4)
        Image.fromarray(grid).save(SHEETS / f"{artist}.webp", quality=85, alpha_quality=100, method=6)


def _drawn(node_modules: Path, artist: str) -> Callable[[str], Image.Image | None]:
    """From an @iconify-json package: noun -> picture; None where one of the extra artists has none."""
    import resvg_py  # noqa: PLC0415  (build time only)

    package = json.loads((node_modules / "@iconify-json" / artist / "icons.json").read_text())

    def draw(noun: str) -> Image.Image | None:
        named = package["icons"].get(NOUNS[noun]) or (package["icons"].get(noun) if artist == "game-icons" else None)
        if named is None and artist in EXTRAS:
            return None
        left, top, width, height = (
            named.get(key, package.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        # A square around the icon: a few are wider than high.
        side = max(width, height)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}">{named["body"]}</svg>'
        )
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))))

    return draw


def _rendered(node_modules: Path) -> Callable[[str], Image.Image]:
    """From @lobehub/fluent-emoji-3d, whose files are named by code points, which the package of noto knows."""
    points = json.loads((node_modules / "@iconify-json" / "noto" / "chars.json").read_text())
    points = {name: point for point, name in reversed(points.items())}
    folder = node_modules / "@lobehub" / "fluent-emoji-3d" / "assets"

    def draw(noun: str) -> Image.Image:
        files = (folder / f"{points[NOUNS[noun]]}{variant}.webp" for variant in ("", "-fe0f"))
        return Image.open(next(file for file in files if file.exists())).resize((SIDE, SIDE), Image.Resampling.LANCZOS)

    return draw


if __name__ == "__main__":
    build(Path(sys.argv[1]))
