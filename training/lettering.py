"""Words and numbers in a scene: what is written, in which cells it stands, and which characters each cell holds."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from training import fonts

CELL, PATCH = 28, 14
# Index 0 is "no character". Case is not told apart: "STOP" and "stop" are the same word.
ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,$%:-/#"
SLOTS = 4
UNREADABLE = -1

# Every word, spelled as here, is one token of SmolLM2 with a leading space, so that a visual token can be that word.
_WORDS = """
NAMES: John Mary Anna Tom David Emma Peter Lucy Mark Sarah Paul Laura James Kate Jack Alice Sam Lisa Adam Julia Robert
    Maria George Helen Henry Diana Simon Nina Frank Rose Oliver Grace Leo Ruby Max Clara
CITIES: Paris London Rome Berlin Madrid Tokyo Boston Chicago Dallas Miami Seattle Sydney Delhi Cairo Athens Vienna
    Dublin Oslo Prague
DAYS: Monday Tuesday Wednesday Thursday Friday Saturday Sunday
MONTHS: January February March April May June July August September October November December
FOODS: coffee tea milk juice water soup salad sugar pasta toast bread cheese butter apple banana lemon rice corn pizza
    cake cookie tomato potato onion carrot egg fish chicken beef pork grapes pear peach
SUBJECTS: math history music art science biology chemistry physics sports reading
SOURCES: solar wind coal oil gas nuclear
TRAVEL: train bus car bike plane taxi boat truck
PETS: cat dog bird horse cow pig duck lion bear fox
TINTS: red green blue yellow black white orange
COUNTRYSIDE: moon river ocean forest island summer winter spring autumn morning night light world
SHOPS: park street library museum airport market bakery pharmacy garage theater gallery garden studio office kitchen
    hotel
SIGNS: open stop exit sale push pull hello thanks welcome danger caution keep quiet slow fast free new hot cold sold out
    enter closed wait turn left right up down north south east west toilet police ticket parking start finish begin end
    win lose play pause help info news fire lunch dinner breakfast happy dream love peace hope magic star power future
    energy nature animal family friend school house home baby king queen doctor teacher student driver pilot artist walk
KEYS: total name date price city day table room number size age team score color class year month phone order item tax
THINGS: books toys clothes shoes bags pens games tools paper
"""


def _lists() -> dict[str, tuple[str, ...]]:
    entries = _WORDS.strip().replace("\n    ", " ").splitlines()
    return {name: tuple(words.split()) for name, words in (entry.split(":") for entry in entries)}


LISTS = _lists()


@cache
def words() -> tuple[str, ...]:
    """Every word that scenes are lettered with, lower case, sorted."""
    return tuple(sorted({word.lower() for part in LISTS.values() for word in part}))


@cache
def _spellings() -> dict[str, str]:
    return {word.lower(): word for part in LISTS.values() for word in part}


def spelled(text: str) -> str:
    """Written words as they are usually spelled ("MONDAY" -> "Monday", "Open" -> "open"); what is unknown in lower case."""
    return " ".join(_spellings().get(word.lower(), word.lower()) for word in text.split())


def class_name(word: str) -> str:
    """The class of a written word: its own where it is known, else "text word"; a number's is its first two digits."""
    plain = "".join(c for c in word.lower() if c.isalnum())
    return f"text {plain if plain in words() else plain[:2] if plain.isdigit() else 'word'}"


@dataclass(frozen=True)
class Text:
    """Something written: ``x``, ``y`` its centre as a share of the width and height; ``height`` the font's size in pixels."""

    text: str
    x: float
    y: float
    height: int


@dataclass
class Sheet:
    """A picture being lettered: image float32 [H, W, 3], and what its cells [H/28, W/28] and patches [H/14, W/14] say."""

    image: np.ndarray
    texts: list[Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        high, wide = self.image.shape[0] // CELL, self.image.shape[1] // CELL
        self.written: dict[tuple[int, int], list[tuple[float, str, str]]] = {}
        self.touched = np.zeros((high, wide), bool)
        self.chars = np.zeros((high, wide, SLOTS), np.int64)
        self.glyphs = np.zeros((2 * high, 2 * wide), np.int64)

    def write(self, text: str, font_name: str, size: int, x: float, y: float, color: np.ndarray, anchor: str = "lm") -> None:
        """Letters ``text`` with its left (``lm``), middle (``mm``) or right (``rm``) at x, y in pixels, vertically centred."""
        font = fonts.font(font_name, size)
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        x0 = x - {"l": 0, "m": (right - left) / 2, "r": right - left}[anchor[0]] - left
        cap = font.getbbox("x0", anchor="ls")[1]
        base = round(y - cap / 2)
        x0 = round(x0)
        box = (x0 + left, base + top, x0 + right, base + bottom)
        height, width = self.image.shape[:2]
        mask = Image.new("L", (box[2] - box[0] + 2, box[3] - box[1] + 2))
        ImageDraw.Draw(mask).text((1 - left, 1 - top), text, font=font, fill=255, anchor="ls")
        rows = slice(max(0, box[1] - 1), max(0, min(height, box[3] + 1)))
        columns = slice(max(0, box[0] - 1), max(0, min(width, box[2] + 1)))
        y0, x0_mask = rows.start - box[1] + 1, columns.start - box[0] + 1
        inked = np.asarray(mask)[y0 : y0 + rows.stop - rows.start, x0_mask : x0_mask + columns.stop - columns.start]
        alpha = inked[..., None].astype(np.float32) / 255
        spot = self.image[rows, columns]
        spot += alpha * (color - spot)
        self._note(text, font, x0, y, box)
        self.texts.append(Text(text, (box[0] + box[2]) / 2 / width, y / height, size))

    def _note(self, text: str, font, x0: int, y: float, box: tuple[int, int, int, int]) -> None:
        high, wide = self.touched.shape
        self.touched[max(0, box[1] // CELL) : box[3] // CELL + 1, max(0, box[0] // CELL) : box[2] // CELL + 1] = True
        self.glyphs[max(0, box[1] // PATCH) : box[3] // PATCH + 1, max(0, box[0] // PATCH) : box[2] // PATCH + 1] = UNREADABLE
        top, bottom = (int((edge + PATCH / 2) // PATCH) for edge in (box[1] + 1, box[3] - 1))
        lines = slice(max(0, top), max(bottom, top + 1))
        row = int(y // CELL)
        place = 0
        for word in text.split(" "):
            for index in range(place, place + len(word)):
                start, stop = (x0 + font.getlength(text[:end]) for end in (index, index + 1))
                first, last = (max(0, int(-((PATCH / 2 - edge) // PATCH))) for edge in (start, stop))
                self.glyphs[lines, first:last] = ALPHABET.find(text[index].lower())
                centre = (start + stop) / 2
                cell = row, int(centre // CELL)
                if 0 <= row < high and 0 <= cell[1] < wide:
                    letter, following = text[index].lower(), text[index + 1 : index + 2]
                    if letter.isdigit():
                        name = class_name(letter + following * following.isdigit())
                    else:
                        name = class_name(word if any(c.isalpha() for c in word) else letter)
                    self.written.setdefault(cell, []).append((centre, letter, f"{name}@{y}"))
            place += len(word) + 1

    def finish(self, labels: np.ndarray, class_index: dict[str, int], ignore: int) -> np.ndarray:
        """Fills ``chars`` and returns ``labels`` with the written words in their cells.

        A cell that two lines share, or that letters touch without their centres in it, is not judged.
        """
        labels = np.where(self.touched, ignore, labels)
        self.chars[self.touched] = UNREADABLE
        for cell, letters in self.written.items():
            letters.sort()
            names = [name for _, _, name in letters]
            lines = {name.split("@")[1] for name in names}
            if len(lines) > 1 or len(letters) > SLOTS:
                continue
            names = [name.split("@")[0] for name in names]
            # The first digits of a number name its cell: two where both stand in it.
            if digits := [name for name in names if name[5].isdigit()]:
                names = [digits[0] if len(digits) > 1 else digits[0][:6]]
            labels[cell] = class_index[max(names, key=names.count)]
            self.chars[cell] = 0
            for slot, (_, letter, _) in enumerate(letters):
                self.chars[cell][slot] = ALPHABET.find(letter)
        return labels


def contrast(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A text colour that can be read on ``ground`` (mean RGB)."""
    for _ in range(20):
        color = rng.uniform(0, 255, 3) if rng.random() < 0.5 else np.full(3, rng.choice((0.0, 25.0, 245.0, 255.0)))
        if abs((color - ground) @ (0.3, 0.59, 0.11)) > 95:
            return color.astype(np.float32)
    return np.full(3, 0.0 if ground @ (0.3, 0.59, 0.11) > 127 else 255.0, np.float32)


def cased(rng: np.random.Generator, word: str) -> str:
    """The word in capitals, capitalised or as it is."""
    return (word.upper(), word.capitalize(), word)[rng.integers(3)]


def font_for(rng: np.random.Generator, unseen: bool) -> str:
    """A font of training or, with ``unseen``, one kept for tests."""
    pool = fonts.held_out() if unseen else fonts.names()
    return str(pool[rng.integers(len(pool))])
