"""Draws the example pictures of the page. ``python -m training.examples``; their seed is used nowhere else."""

import json
from pathlib import Path

from PIL import Image

from training import questions, world

SEED = 77
FOLDER = Path(__file__).resolve().parent.parent / "assets" / "images"
# (kind of scene, size, items, index of the scene, question or the kind of one)
SCENES = (
    ("objects", (448, 448), 4, 3, "What is in the picture?"),
    ("objects", (336, 336), 1, 1, "What is this?"),
    ("objects", (448, 448), 5, 2, "How many objects are there?"),
    ("objects", (224, 448), 3, 10, "What is at the {place}?"),
    ("objects", (448, 448), 3, 8, "Where is the {name}?"),
    ("words", (448, 448), 2, 7, "read"),
    ("chart", (448, 448), 0, 4, "chart"),
    ("document", (448, 448), 0, 6, "document"),
)


def draw(kind: str, size: tuple[int, int], count: int, index: int) -> world.Scene:
    """The scene of a kind."""
    rng = world.rng_for(SEED, index)
    if kind == "chart":
        return world.draw_chart(rng, size)
    if kind == "document":
        return world.draw_document(rng, size)
    return world.draw(rng, size, count, smallest=56, words=int(kind == "words"))


def asked(scene: world.Scene, index: int, question: str) -> str:
    """The question in words."""
    if question in questions.KINDS:
        return questions.ask(world.rng_for(SEED, index), scene, question).text
    item = next((item for item in scene.items if world.place(item)), None)
    return question.format(name=item.name, place=world.place(item)) if item else question


def main() -> None:
    """Writes the pictures and examples.json."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415

    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, (kind, size, count, index, question) in enumerate(SCENES, 1):
        scene = draw(kind, size, count, index)
        name = f"scene-{number}.png"
        Image.fromarray(scene.image).save(FOLDER / name, optimize=True)
        listed.append([name, asked(scene, index, question)])
        print(name, listed[-1][1], [item.name for item in scene.items], [text.text for text in scene.texts])
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((448, 299))
    photo.save(FOLDER / "photo-flower.jpg", quality=88)
    listed.append(["photo-flower.jpg", "What is in the picture?"])
    (FOLDER / "examples.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
