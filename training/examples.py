"""Draws the example pictures of the page. ``python -m training.examples``; their seed is used nowhere else."""

import json
from pathlib import Path

from PIL import Image

from training import world

SEED = 77
FOLDER = Path(__file__).resolve().parent.parent / "assets" / "images"
# (size, items, index of the scene, question)
SCENES = (
    ((448, 448), 4, 3, "What is in the picture?"),
    ((336, 336), 1, 1, "What is this?"),
    ((448, 448), 5, 2, "How many objects are there?"),
    ((224, 448), 3, 5, "What is at the {place}?"),
    ((336, 336), 3, 4, "Where is the {name}?"),
    ((448, 224), 3, 7, "What do you see?"),
    ((448, 448), 2, 8, "Is there a {name} in the picture?"),
    ((224, 224), 2, 9, "What is in the picture?"),
)


def main() -> None:
    """Writes the pictures and examples.json."""
    from sklearn.datasets import load_sample_image  # noqa: PLC0415

    FOLDER.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, (size, count, index, question) in enumerate(SCENES, 1):
        scene = world.draw(world.rng_for(SEED, index), size, count, smallest=56)
        item = next((i for i in scene.items if world.place(i)), scene.items[0])
        name = f"scene-{number}.png"
        Image.fromarray(scene.image).save(FOLDER / name, optimize=True)
        listed.append([name, question.format(name=item.name, place=world.place(item))])
        print(name, listed[-1][1], [i.name for i in scene.items])
    photo = Image.fromarray(load_sample_image("flower.jpg")).resize((448, 299))
    photo.save(FOLDER / "photo-flower.jpg", quality=88)
    listed.append(["photo-flower.jpg", "What is in the picture?"])
    (FOLDER / "examples.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
