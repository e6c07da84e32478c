"""Draws the example pictures of the page. ``python -m training.examples``; their seed is used nowhere else.

Of every kind the first scene that the shipped model answers rightly with all patches: where nothing was right, pruning has nothing
to lose. How often it is right is measured elsewhere (``bench.headline``).
"""

import json
from itertools import count
from pathlib import Path

from PIL import Image

from training import questions, world
from vlm.model import Vlm, last
from vlm.open import open_vlm

SEED = 77
FOLDER = Path(__file__).resolve().parent.parent / "assets" / "images"
# (kind of scene, size, items, kind of question)
SCENES = (
    ("objects", (448, 448), 4, "list"),
    ("objects", (336, 336), 1, "name"),
    ("objects", (448, 448), 6, "count"),
    ("objects", (224, 448), 3, "place"),
    ("objects", (448, 448), 3, "where"),
    ("words", (448, 448), 2, "read"),
    ("chart", (448, 448), 0, "chart"),
    ("document", (448, 448), 0, "document"),
)


def draw(kind: str, size: tuple[int, int], items: int, index: int) -> world.Scene:
    """The scene of a kind."""
    rng = world.rng_for(SEED, index)
    if kind == "chart":
        return world.draw_chart(rng, size)
    if kind == "document":
        return world.draw_document(rng, size)
    return world.draw(rng, size, items, smallest=56, words=int(kind == "words"), look=world.Look())


def answered(
    vlm: Vlm, first: int, kind: str, size: tuple[int, int], items: int, asked: str
) -> tuple[Image.Image, questions.Question]:
    """The first scene of a kind, from index ``first`` on, whose question the model answers rightly."""
    for index in count(first):
        scene = draw(kind, size, items, index)
        question = questions.ask(world.rng_for(SEED, index), scene, asked)
        if not question or len(scene.items) != items:
            continue
        picture = Image.fromarray(scene.image)
        said = last(vlm.answer([vlm.encode(picture)], question.text, max_new_tokens=40)).text
        print(f"  {index}: {question.text} {said}")
        if questions.is_right(question, said):
            return picture, question


def main() -> None:
    """Writes the pictures and examples.json."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415

    FOLDER.mkdir(parents=True, exist_ok=True)
    vlm, listed = open_vlm(), []
    for number, row in enumerate(SCENES, 1):
        picture, question = answered(vlm, 100 * number, *row)
        picture.save(FOLDER / f"scene-{number}.png", optimize=True)
        listed.append([f"scene-{number}.png", question.text])
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((448, 299))
    photo.save(FOLDER / "photo-flower.jpg", quality=88)
    listed.append(["photo-flower.jpg", "What is in the picture?"])
    (FOLDER / "examples.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
