"""Small documents (receipts, forms, tables, signs) and questions about them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from training import lettering
from training.lettering import LISTS

PITCH = 30


@dataclass(frozen=True)
class Document:
    """kind: receipt, form, table or sign; facts: (question texts, answer)."""

    kind: str
    facts: tuple[tuple[tuple[str, ...], str], ...]


def answer(value: str) -> str:
    """A number alone, or a word in a sentence, spelled so that it is the token that its visual tokens are near."""
    return f"{value}." if value.isdigit() else f"It is {value}."


def draw(rng: np.random.Generator, height: int, width: int, unseen: bool) -> tuple[lettering.Sheet, Document]:
    """A document that fills the picture of ``height`` x ``width`` pixels."""
    ground = rng.uniform(228, 255, 3) if rng.random() < 0.85 else rng.uniform(150, 255, 3)
    image = Image.new("RGB", (width, height), tuple(int(c) for c in ground))
    wide = width >= 336
    kind = str(rng.choice(("receipt", "form", "table", "sign"), p=(0.32, 0.3, 0.26, 0.12) if wide else (0.4, 0.4, 0, 0.2)))
    pen = Pen(rng, image, np.full(3, rng.uniform(0, 60), np.float32), lettering.font_for(rng, unseen))
    facts = {"receipt": _receipt, "form": _form, "table": _table, "sign": _sign}[kind](pen)
    sheet = lettering.Sheet(np.asarray(image, np.float32).copy())
    for text, size, x, y, anchor in pen.lines:
        sheet.write(text, pen.font, size, x, y, pen.ink, anchor)
    return sheet, Document(kind, tuple(facts))


class Pen:
    """Where the next line goes, and what is to be lettered once the rules are drawn."""

    def __init__(self, rng: np.random.Generator, image: Image.Image, ink: np.ndarray, font: str) -> None:
        self.rng, self.ink, self.font = rng, ink, font
        self.width, self.height = image.size
        self.draw = ImageDraw.Draw(image)
        self.size = int(rng.integers(*((22, 36) if self.width >= 448 else (21, 29) if self.width >= 336 else (17, 20))))
        self.margin = int(rng.integers(8, 8 + self.width // 10))
        self.pitch = int(rng.integers(max(PITCH - 2, self.size + 9), self.size + 28))
        self.y = float(rng.integers(14, 14 + self.height // 5))
        self.lines: list[tuple[str, int, float, float, str]] = []

    def put(self, text: str, x: float, anchor: str = "lm", larger: int = 0) -> None:
        """Letters ``text`` on the present line."""
        self.lines.append((text, self.size + larger, x, self.y, anchor))

    def rule(self) -> None:
        """A thin rule under the present line."""
        y = self.y + self.pitch / 2
        self.draw.line((self.margin, y, self.width - self.margin, y), fill=tuple(int(c) for c in self.ink))

    def feed(self) -> None:
        """To the next line."""
        self.y += self.pitch

    def rows(self, spare: int = 0) -> int:
        """How many lines are left, less ``spare``."""
        return max(1, int((self.height - 14 - self.y) // self.pitch) - spare)

    def some(self, pool: tuple[str, ...], count: int) -> list[str]:
        """``count`` different words of ``pool``."""
        return [str(word) for word in self.rng.choice(pool, size=min(count, len(pool)), replace=False)]

    def number(self, low: int, high: int) -> int:
        """A whole number in low..high-1."""
        return int(self.rng.integers(low, high))


def _receipt(pen: Pen) -> list:
    shop = pen.some(LISTS["SHOPS"], 1)[0]
    pen.put(lettering.cased(pen.rng, shop), pen.width / 2, "mm", larger=4)
    if pen.rng.random() < 0.6:
        pen.rule()
    pen.feed()
    goods = pen.some((*LISTS["FOODS"], *LISTS["THINGS"]), min(pen.rows(2), pen.number(2, 9)))
    prices = [pen.number(1, 60) for _ in goods]
    sign = "$" if pen.rng.random() < 0.6 else ""
    for name, price in zip(goods, prices, strict=True):
        pen.put(name.capitalize(), pen.margin)
        pen.put(f"{sign}{price}", pen.width - pen.margin, "rm")
        pen.feed()
    pen.put("Total", pen.margin)
    pen.put(f"{sign}{sum(prices)}", pen.width - pen.margin, "rm")
    facts = [
        ((f"How much is the {name}?", f"What is the price of {name}?"), f"{sign}{price}.")
        for name, price in zip(goods, prices, strict=True)
    ]
    total = ("What is the total?", "How much is the total?", "What is the total price?")
    return [
        *facts,
        *[(total, f"{sign}{sum(prices)}.")] * 2,
        (("What is the name of the shop?", "Which shop is it?"), answer(shop)),
    ]


def _form(pen: Pen) -> list:
    fields = {
        "name": pen.some(LISTS["NAMES"], 1)[0],
        "city": pen.some(LISTS["CITIES"], 1)[0],
        "day": pen.some(LISTS["DAYS"], 1)[0],
        "month": pen.some(LISTS["MONTHS"], 1)[0],
        "age": str(pen.number(5, 99)),
        "room": str(pen.number(1, 500)),
        "table": str(pen.number(1, 60)),
        "color": pen.some(LISTS["TINTS"], 1)[0],
        "class": pen.some(LISTS["SUBJECTS"], 1)[0],
        "score": str(pen.number(1, 100)),
        "year": str(pen.number(1950, 2031)),
        "order": str(pen.number(10, 1000)),
    }
    if pen.rng.random() < 0.5:
        pen.put(
            lettering.cased(pen.rng, pen.some(("ticket", "order", "school", "library", "hotel", "office", "team"), 1)[0]),
            pen.width / 2,
            "mm",
            4,
        )
        pen.rule()
        pen.feed()
    shown = pen.some(tuple(fields), min(pen.rows(), pen.number(3, 7)))
    tab = pen.margin + pen.size * 4.6
    colon = ":" if pen.rng.random() < 0.7 else ""
    for key in shown:
        pen.put(key.capitalize() + colon, pen.margin)
        value = fields[key] if fields[key][0].isupper() or fields[key].isdigit() else fields[key].capitalize()
        pen.put(value, tab)
        if pen.rng.random() < 0.3:
            pen.rule()
        pen.feed()
    return [((f"What is the {key}?", f"What {key} is written?"), answer(fields[key])) for key in shown]


def _table(pen: Pen) -> list:
    head = ("Name", *pen.some(("Age", "Score", "City", "Day"), pen.number(1, 3)))
    pools = {"City": LISTS["CITIES"], "Day": tuple(d for d in LISTS["DAYS"] if len(d) < 8)}
    rows = pen.number(2, 1 + min(6, max(2, pen.rows(1))))
    people = pen.some(LISTS["NAMES"], rows)
    pitch = (pen.width - 2 * pen.margin) / len(head)
    pen.size = min(pen.size, int(pitch / 4.8))
    facts = []
    for index, title in enumerate(head):
        pen.put(title, pen.margin + pitch * index + 4)
    pen.rule()
    pen.feed()
    grid = pen.rng.random() < 0.5
    for person in people:
        pen.put(person, pen.margin + 4)
        for index, title in enumerate(head[1:], 1):
            value = pen.some(pools[title], 1)[0] if title in pools else str(pen.number(5, 100))
            pen.put(value, pen.margin + pitch * index + 4)
            facts.append(((f"What is the {title.lower()} of {person}?",), answer(value)))
        if grid:
            pen.rule()
        pen.feed()
    return facts


def _sign(pen: Pen) -> list:
    words = pen.some(LISTS["SIGNS"], 1 + (pen.rng.random() < 0.35))
    color = tuple(int(c) for c in 255 - pen.rng.uniform(0, 120, 3))
    inset = pen.number(6, 30)
    pen.draw.rounded_rectangle(
        (inset, inset, pen.width - inset, pen.height - inset),
        radius=inset,
        fill=color,
        width=4,
        outline=tuple(int(c) for c in pen.ink),
    )
    longest = max(len(word) for word in words)
    pen.size = int(min(60, (pen.width - 2 * inset - 12) / (0.75 * longest)))
    shown = [lettering.cased(pen.rng, word) for word in words]
    pen.y = pen.height / 2 - (len(words) - 1) * pen.size * 0.7
    for word in shown:
        pen.put(word, pen.width / 2, "mm")
        pen.y += pen.size * 1.4
    return [(("What does the sign say?", "What is written on the sign?", "Read the sign."), f"It says {' '.join(words)}.")]
