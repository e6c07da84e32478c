"""The world that TrimLens-150M knows: pictograms, coloured shapes, words, charts and small documents, drawn in milliseconds.

A scene carries what is needed to ask about it (items, texts, chart, document) and to supervise every visual token (a class
and up to four characters per 28 x 28 cell).
"""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.ndimage import binary_fill_holes

from training import charts, documents, grounds, icons, lettering
from training.pictures import COLORS, SHAPES, picture

CELL = 28
BACKGROUND, IGNORE = 0, -1
# (height, width): multiples of 112, so that the windows of a training batch are one tensor; 64 to 256 visual tokens.
SIZES = ((224, 224), (224, 336), (336, 224), (336, 336), (224, 448), (448, 224), (336, 448), (448, 336), (448, 448))
SIZE_WEIGHTS = (0.08, 0.05, 0.05, 0.11, 0.07, 0.05, 0.08, 0.08, 0.43)
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


@cache
def classes() -> tuple[str, ...]:
    """Class names by index: the ground, every noun, colour and shape ("red circle"), one or two digits, and word ("text open")."""
    shapes = (f"{color} {shape}" for color in COLORS for shape in SHAPES)
    digits = (*"0123456789", *(f"{number:02}" for number in range(100)))
    return ("background", *icons.names(), *shapes, *(f"text {text}" for text in (*digits, "word", *lettering.words())))


@cache
def class_index() -> dict[str, int]:
    """Index by class name."""
    return {name: index for index, name in enumerate(classes())}


@cache
def first_text() -> int:
    """The first class of written words."""
    return classes().index("text 0")


@cache
def things() -> tuple[str, ...]:
    """The classes that an item can have: nouns, and shapes in a colour."""
    return tuple(name for name in classes()[1:] if not name.startswith("text "))


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
    """image uint8 [H, W, 3]; labels int64 [H/28, W/28] (class index, or IGNORE where a cell is barely touched).

    ``chars`` int64 [H/28, W/28, 4]: the characters of a cell from the left as indices into ``lettering.ALPHABET``;
    ``glyphs`` int64 [H/14, W/14]: the character in the middle of a patch. ground: one of ``grounds.KINDS``, where there is one.
    """

    image: np.ndarray
    items: tuple[Item, ...]
    labels: np.ndarray
    chars: np.ndarray
    glyphs: np.ndarray
    kind: str = "objects"
    texts: tuple[lettering.Text, ...] = ()
    chart: charts.Chart | None = None
    document: documents.Document | None = None
    ground: str | None = None


@dataclass(frozen=True)
class Look:
    """What a split may draw: pictograms of held-out (noun, artist) pairs, held-out fonts; or the rest.

    varied: half of the pictograms are turned, sheared and tinted, so that a noun is not learned as three drawings by heart.
    """

    unseen_icons: bool = False
    unseen_fonts: bool = False
    varied: bool = False
    nouns: tuple[str, ...] = tuple(icons.names())
    artists: tuple[str, ...] = icons.ARTISTS

    def artists_of(self, noun: str) -> list[str]:
        """Whose pictograms of a noun may be drawn."""
        return [a for a in self.artists if noun in icons.sheet(a) and icons.held_out(noun, a) == self.unseen_icons]


TRAINING = Look(artists=(*icons.ARTISTS, *icons.EXTRAS))
VARIED = Look(artists=TRAINING.artists, varied=True)


def place(item: Item | lettering.Text) -> str | None:
    """The ninth of the picture that holds the centre, in words; None where it is too close to a border to call."""
    if any(abs(v * 3 - edge) < 0.12 for v in (item.x, item.y) for edge in (1, 2)):
        return None
    return place_name(int(item.y * 3), int(item.x * 3))


def place_name(row: int, column: int) -> str:
    """("top left", "top", ..., "center", ..., "bottom right") for row, column in 0..2."""
    words = [w for w in (ROWS[row], COLUMNS[column]) if w not in ("middle", "center")]
    return " ".join(words) or "center"


@cache
def _nouns(look: Look) -> tuple[str, ...]:
    return tuple(noun for noun in look.nouns if look.artists_of(noun))


def _name(rng: np.random.Generator, look: Look) -> str:
    if rng.random() < 0.16:
        return f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    return _nouns(look)[rng.integers(len(_nouns(look)))]


@dataclass
class _Canvas:
    """A picture in the making: what was put where."""

    image: np.ndarray
    items: list[Item] = field(default_factory=list)
    covers: list[tuple[int, np.ndarray]] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def free(self, y: float, x: float, high: float, wide: float) -> bool:
        """Whether a box overlaps the others by little."""
        return not any(
            abs(x - bx + (wide - bw) / 2) < 0.46 * (wide + bw) and abs(y - by + (high - bh) / 2) < 0.46 * (high + bh)
            for by, bx, bh, bw in self.boxes
        )

    def cover(self, name: str, solid: np.ndarray) -> None:
        """Notes the share of every cell that ``solid`` [H, W] fills."""
        high, wide = solid.shape
        self.covers.append((class_index()[name], solid.reshape(high // CELL, CELL, wide // CELL, CELL).mean((1, 3))))

    def labels(self) -> np.ndarray:
        """int64 [H/28, W/28]"""
        labels = np.full((self.image.shape[0] // CELL, self.image.shape[1] // CELL), BACKGROUND, np.int64)
        if not self.covers:
            return labels
        share = np.stack([s for _, s in self.covers])
        index = np.array([i for i, _ in self.covers])[share.argmax(0)]
        most = share.max(0)
        return np.where(most > 0.22, index, np.where(most > 0.03, IGNORE, labels))


def draw(
    rng: np.random.Generator,
    size: tuple[int, int],
    count: int | None = None,
    smallest: int = 48,
    words: int | None = None,
    look: Look = TRAINING,
) -> Scene:
    """One scene of ``size`` (height, width; multiples of 28) with up to ``count`` items and ``words`` that do not overlap.

    Items are between ``smallest`` and 120 pixels; fewer than ``count`` are placed where the picture is full.
    """
    height, width = size
    count = int(rng.choice(8, p=(0.16, 0.13, 0.13, 0.13, 0.13, 0.13, 0.11, 0.08))) + 1 if count is None else count
    words = int(rng.integers(1, 3)) * (rng.random() < 0.2) if words is None else words
    ground = grounds.draw_kind(rng)
    canvas = _Canvas(grounds.ground(rng, ground, height, width))
    for _ in range(8 * count):
        if len(canvas.items) == count:
            break
        _put_item(rng, canvas, smallest, 120 if count < 6 else 76, look)
    sheet = lettering.Sheet(canvas.image)
    for _ in range(4 * words):
        if len(sheet.texts) == words:
            break
        _put_word(rng, canvas, sheet, look)
    canvas.image += rng.normal(0, rng.uniform(0, 5), (1, 1, 3)) + rng.normal(0, 1) * 4
    return _scene(canvas, sheet, "objects" if canvas.items else "words", ground=ground)


def _put_item(rng: np.random.Generator, canvas: _Canvas, smallest: int, largest: int, look: Look) -> None:
    image, items = canvas.image, canvas.items
    height, width = image.shape[:2]
    side = int(rng.integers(smallest // 4, largest // 4 + 1)) * 4
    y, x = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    if not canvas.free(y, x, side, side):
        return
    name = items[-1].name if items and rng.random() < 0.12 else _name(rng, look)
    drawn = picture(rng, name, side, look.artists_of(name), look.varied)
    alpha = drawn[..., 3:].astype(np.float32) / 255
    spot = image[y : y + side, x : x + side]
    # A white shape on white paper cannot be seen: such an item is not there.
    solid = alpha[..., 0] > 0.5
    if np.abs(spot[solid].mean(0) - drawn[..., :3][solid].mean(0)).max() < 28:
        return
    spot += alpha * (drawn[..., :3] - spot)
    whole = np.zeros((height, width), bool)
    # What a line goes around belongs to the thing, and is where its centre is marked.
    whole[y : y + side, x : x + side] = binary_fill_holes(solid)
    canvas.cover(name, whole)
    items.append(Item(name, (x + side / 2) / width, (y + side / 2) / height, side))
    canvas.boxes.append((y, x, side, side))


def _put_word(rng: np.random.Generator, canvas: _Canvas, sheet: lettering.Sheet, look: Look) -> None:
    height, width = canvas.image.shape[:2]
    known = lettering.words()
    text = str(rng.integers(0, 1000)) if rng.random() < 0.2 else lettering.cased(rng, known[rng.integers(len(known))])
    font, size = lettering.font_for(rng, look.unseen_fonts), int(rng.integers(24, 53))
    wide, high = lettering.fonts.font(font, size).getlength(text) + 6, 1.2 * size
    if wide > width or (len(text) > 3 and wide / len(text) < 8):
        return
    y, x = rng.uniform(0, height - high), rng.uniform(0, width - wide)
    if not canvas.free(y, x, high, wide):
        return
    spot = canvas.image[int(y) : int(y + high), int(x) : int(x + wide)]
    color = lettering.contrast(rng, spot.mean((0, 1)))
    if rng.random() < 0.6 or spot.std((0, 1)).max() > 25:
        # A plate behind the word, where the ground is busy.
        spot[:] = np.where(color.mean() < 128, rng.uniform(190, 255, 3), rng.uniform(0, 90, 3))
        color = lettering.contrast(rng, spot[0, 0])
    sheet.write(text, font, size, x + 3, y + high / 2, color)
    canvas.boxes.append((y, x, high, wide))


def draw_chart(rng: np.random.Generator, size: tuple[int, int], look: Look = TRAINING) -> Scene:
    """A bar or line chart; its bars are labelled as squares of their colour."""
    sheet, chart, masks = charts.draw(rng, *size, COLORS, look.unseen_fonts)
    canvas = _Canvas(sheet.image)
    for color, mask in masks:
        canvas.cover(f"{color} square", mask)
    return _scene(canvas, sheet, "chart", chart=chart)


def draw_document(rng: np.random.Generator, size: tuple[int, int], look: Look = TRAINING) -> Scene:
    """A receipt, form, table or sign."""
    sheet, document = documents.draw(rng, *size, look.unseen_fonts)
    return _scene(_Canvas(sheet.image), sheet, "document", document=document)


def draw_words(rng: np.random.Generator, size: tuple[int, int], look: Look = TRAINING, most: int = 4) -> Scene:
    """Up to ``most`` words and numbers on a ground, with few items or none."""
    count = int(rng.integers(0, 3)) * (rng.random() < 0.4)
    return draw(rng, size, count, words=int(rng.integers(1, most + 1)), look=look)


def draw_any(rng: np.random.Generator, size: tuple[int, int], look: Look = TRAINING) -> Scene:
    """A scene of a random kind, as often as in training."""
    kind = rng.random()
    if kind < 0.46:
        return draw(rng, size, look=look)
    if kind < 0.67:
        return draw_words(rng, size, look)
    return draw_chart(rng, size, look) if kind < 0.91 else draw_document(rng, size, look)


def lettered(sheet: lettering.Sheet) -> Scene:
    """The scene of a sheet with nothing but print on it."""
    return _scene(_Canvas(sheet.image), sheet, "words")


def _scene(canvas: _Canvas, sheet: lettering.Sheet, kind: str, **facts) -> Scene:
    labels = sheet.finish(canvas.labels(), class_index(), IGNORE)
    image = np.clip(canvas.image, 0, 255).astype(np.uint8)
    return Scene(image, tuple(canvas.items), labels, sheet.chars, sheet.glyphs, kind, tuple(sheet.texts), **facts)


def rng_for(seed: int, index: int) -> np.random.Generator:
    """The generator of scene ``index`` of a split; splits have different seeds, so that no scene is shared."""
    return np.random.default_rng((seed, index))
