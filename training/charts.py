"""Bar and line charts with labels and printed values, and questions about them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from training import lettering
from training.lettering import LISTS

TOPICS = {
    "Sales": (*LISTS["FOODS"], *LISTS["THINGS"]),
    "Votes": LISTS["NAMES"],
    "Score": LISTS["NAMES"],
    "Price": (*LISTS["FOODS"], *LISTS["THINGS"]),
    "Visitors": LISTS["CITIES"],
    "Hours": LISTS["DAYS"],
    "Rain": LISTS["MONTHS"],
    "Grades": LISTS["SUBJECTS"],
    "Energy": LISTS["SOURCES"],
    "Trips": LISTS["TRAVEL"],
    "Animals": LISTS["PETS"],
}


@dataclass(frozen=True)
class Chart:
    """title, one value a label, the bars' colour names (None for a line chart), and whether the values are printed."""

    title: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[str, ...] | None
    printed: bool


def draw(rng: np.random.Generator, height: int, width: int, palette: dict[str, tuple], unseen: bool):
    """A chart on a plain ground. Returns the sheet, the chart, and for every bar (name of its colour, mask [H, W])."""
    wide = width >= 336
    count = int(rng.integers(2, 6 if wide else 4))
    # Longer labels would be small print.
    longest = 7 if width / count >= 110 else 5
    pools = {topic: [word for word in words if len(word) <= longest] for topic, words in TOPICS.items()}
    topic = str(rng.choice([topic for topic, pool in pools.items() if len(pool) >= 3]))
    pool = pools[topic]
    labels = tuple(str(w) for w in rng.choice(pool, size=min(count, len(pool)), replace=False))
    values = tuple(int(v) for v in rng.choice(np.arange(5, 100), size=len(labels), replace=False))
    bars, printed = rng.random() < 0.65, rng.random() < 0.8
    light = rng.random() < 0.8
    ground = rng.uniform(225, 255, 3) if light else rng.uniform(10, 50, 3)
    ink = np.full(3, 20.0 if light else 240.0, np.float32)
    image = Image.new("RGB", (width, height), tuple(int(c) for c in ground))
    pen = ImageDraw.Draw(image)
    size = int(rng.integers(21, 29)) if wide else int(rng.integers(16, 19))
    left, right, top, bottom = 0.07 * width, 0.96 * width, 0.2 * height, height - 1.5 * lettering.CELL
    for line in range(int(rng.integers(0, 5))):
        y = top + (bottom - top) * line / 5
        pen.line((left, y, right, y), fill=tuple(int(c) for c in ground * 0.85 + ink * 0.15))
    pen.line((left, bottom, right, bottom), fill=tuple(int(c) for c in ink), width=2)
    if rng.random() < 0.5:
        pen.line((left, top, left, bottom), fill=tuple(int(c) for c in ink), width=2)
    pitch = (right - left) / len(labels)
    xs = [left + pitch * (i + 0.5) for i in range(len(labels))]
    ys = [bottom - (bottom - top) * v / 105 for v in values]
    names = [name for name in palette if np.abs(np.array(palette[name]) - ground).max() > 70]
    chosen = rng.choice(names, size=len(labels), replace=len(labels) > len(names) or rng.random() < 0.3)
    masks = []
    if bars:
        half = pitch * rng.uniform(0.22, 0.38)
        for x, y, name in zip(xs, ys, chosen, strict=True):
            box = (round(x - half), round(y), round(x + half), round(bottom) - 1)
            pen.rectangle(box, fill=tuple(palette[name]))
            mask = np.zeros((height, width), bool)
            mask[box[1] : box[3], box[0] : box[2]] = True
            masks.append((str(name), mask))
    else:
        color = tuple(palette[chosen[0]])
        pen.line(list(zip(xs, ys, strict=True)), fill=color, width=3)
        for x, y, value in zip(xs, ys, values, strict=True):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
            if printed:
                # The line does not run through its numbers.
                half_width = 0.32 * size * len(str(value))
                pen.rectangle((x - half_width, y - 1.2 * size, x + half_width, y - 0.35 * size), fill=tuple(int(c) for c in ground))
    sheet = lettering.Sheet(np.asarray(image, np.float32).copy())
    font = lettering.font_for(rng, unseen)
    for x, y, label, value in zip(xs, ys, labels, values, strict=True):
        shown = label.capitalize()
        sheet.write(shown, font, _fit(font, shown, size, pitch - 4), x, bottom + 0.75 * lettering.CELL, ink, "mm")
        if printed:
            sheet.write(str(value), font, size, x, y - 0.75 * size, ink, "mm")
    if rng.random() < 0.8:
        sheet.write(topic, font, size + 4, width / 2, 0.075 * height, ink, "mm")
    return sheet, Chart(topic, labels, values, tuple(map(str, chosen)) if bars else None, printed), masks


def _fit(font: str, text: str, size: int, room: float) -> int:
    while size > 10 and lettering.fonts.font(font, size).getlength(text) > room:
        size -= 1
    return size


def ask(rng: np.random.Generator, chart: Chart) -> tuple[str, str]:
    """A question about the chart and its answer."""
    index = int(rng.integers(len(chart.labels)))
    label, value = chart.labels[index], chart.values[index]
    kinds = ["highest", "lowest", "count"]
    kinds += ["value"] * 4 + ["which"] * 2 + ["top value"] if chart.printed else []
    kinds += ["color"] if chart.colors and chart.colors.count(chart.colors[index]) == 1 else []
    kind = str(rng.choice(kinds))
    if kind == "value":
        text = rng.choice(("What is the value of {}?", "What is the value for {}?", "How much is {}?"))
        return str(text).format(label), f"{value}."
    if kind == "which":
        return f"Which one has the value {value}?", f"It is {label}."
    if kind == "top value":
        return "What is the highest value?", f"{max(chart.values)}."
    if kind == "count":
        numbers = ("zero", "one", "two", "three", "four", "five", "six")
        return f"How many {'bars' if chart.colors else 'points'} are in the chart?", f"{numbers[len(chart.labels)].capitalize()}."
    if kind == "color":
        return f"What color is the bar of {label}?", f"{chart.colors[index].capitalize()}."
    pick = np.argmax if kind == "highest" else np.argmin
    text = rng.choice(("Which is the {}?", "Which one is the {}?", "What has the {} value?"))
    return str(text).format(kind), f"It is {chart.labels[int(pick(chart.values))]}."


def read(rng: np.random.Generator, chart: Chart) -> tuple[str, str]:
    """A question that asks for all printed values, from the left, and its answer: what binds every label to its value."""
    text = rng.choice(("What are the values?", "Read the chart.", "List all values."))
    pairs = zip(chart.labels, chart.values, strict=True)
    return str(text), f"It shows {', '.join(f'{label} {value}' for label, value in pairs)}."
