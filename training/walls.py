"""Pictures full of print, which only the vision tower is trained on: letters are learned from how many of them it sees."""

import numpy as np

from training import grounds, lettering, world

SCRAMBLED, NUMBERS = 0.25, 0.2


def draw(rng: np.random.Generator, size: tuple[int, int], look: world.Look = world.TRAINING) -> world.Scene:
    """Lines of words, numbers and scrambled letters of 18 to 72 pixels, every line in its own font, on a ground of ``size``."""
    height, width = size
    image = grounds.ground(rng, grounds.draw_kind(rng), height, width)
    if rng.random() < 0.7:
        # Most print stands on paper.
        image = 0.15 * image + 0.85 * rng.uniform(0, 255, 3).astype(np.float32)
    sheet = lettering.Sheet(image)
    y = float(rng.uniform(0, 10))
    while True:
        letters = int(18 * 4 ** (rng.random() ** 2))
        y += 0.75 * letters
        if y + 0.6 * letters > height:
            break
        _line(rng, sheet, letters, y, look)
        y += rng.uniform(0.65, 1.1) * letters
    return world.lettered(sheet)


def _line(rng: np.random.Generator, sheet: lettering.Sheet, letters: int, y: float, look: world.Look) -> None:
    width = sheet.image.shape[1]
    font = lettering.font_for(rng, look.unseen_fonts)
    spot = sheet.image[max(0, int(y - letters / 2)) : int(y + letters / 2)]
    color = lettering.contrast(rng, spot.mean((0, 1)))
    x = float(rng.uniform(2, 30))
    for _ in range(40):
        text = _text(rng)
        wide = lettering.fonts.font(font, letters).getlength(text)
        if x + wide > width - 2:
            return
        sheet.write(text, font, letters, x, y, color)
        x += wide + rng.uniform(0.4, 2) * letters


def _text(rng: np.random.Generator) -> str:
    kind, known = rng.random(), lettering.words()
    if kind < NUMBERS:
        number = str(rng.integers(0, 10 ** rng.integers(1, 5)))
        return number if rng.random() < 0.6 else rng.choice(("${}", "{}%", "{}:", "#{}", "{}.50")).format(number)
    if kind < NUMBERS + SCRAMBLED:
        return lettering.cased(rng, "".join(rng.choice(list(lettering.ALPHABET[1:37]), rng.integers(1, 7))))
    return lettering.cased(rng, known[rng.integers(len(known))])
