"""Questions about a scene whose answers follow from how it was drawn, and the rule that scores an answer."""

import re
from dataclasses import dataclass

import numpy as np

from training import icons, world

KINDS = ("name", "place", "exist", "count", "where", "color", "list")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
UNCOUNTED = {"fire"}

NAME = ("What is in the picture?", "What is this?", "What do you see?", "What does the picture show?")
LIST = (
    "What is in the picture?",
    "What do you see?",
    "List the objects in the picture.",
    "What does the picture show?",
)
PLACE = ("What is at the {place}?", "What do you see at the {place}?", "What is at the {place} of the picture?")
CENTER = ("What is in the center?", "What do you see in the center?", "What is in the center of the picture?")
EXIST = ("Is there {thing} in the picture?", "Is there {thing}?", "Do you see {thing}?")
COUNT = ("How many objects are there?", "How many objects are in the picture?", "How many things do you see?")
COUNT_KIND = ("How many of them are {name}?",)
WHERE = ("Where is the {name}?", "Where in the picture is the {name}?")
COLOR = ("What color is the {shape}?", "What is the color of the {shape}?")


@dataclass(frozen=True)
class Question:
    """A question of one kind with its right answer."""

    kind: str
    text: str
    answer: str


def with_article(name: str) -> str:
    """("cat" -> "a cat", "owl" -> "an owl", "fire" -> "some fire")."""
    if name in UNCOUNTED:
        return f"some {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def sentence(text: str) -> str:
    """The text as a sentence: a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def listed(names: list[str]) -> str:
    """("a cat, a dog and an owl")."""
    things = [with_article(name) for name in names]
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def reading_order(scene: world.Scene) -> list[world.Item]:
    """Items by thirds from the top, then from the left."""
    return sorted(scene.items, key=lambda item: (int(item.y * 3), item.x))


def ask(rng: np.random.Generator, scene: world.Scene, kind: str) -> Question | None:
    """A random question of ``kind`` about the scene, or None where the scene allows none."""
    names = [item.name for item in scene.items]
    if not names:
        return None
    if kind == "name":
        return Question(kind, str(rng.choice(NAME)), sentence(with_article(names[0]))) if len(names) == 1 else None
    if kind == "list":
        things = [item.name for item in reading_order(scene)]
        return Question(kind, str(rng.choice(LIST)), sentence(listed(things))) if len(names) > 1 else None
    if kind == "place":
        return _ask_place(rng, scene)
    if kind == "exist":
        return _ask_existence(rng, names)
    if kind == "count":
        return Question(kind, str(rng.choice(COUNT)), sentence(NUMBERS[len(names)]))
    if kind == "where":
        clear = [(item, where) for item in scene.items if names.count(item.name) == 1 and (where := world.place(item))]
        if not clear:
            return None
        item, where = clear[rng.integers(len(clear))]
        answer = "in the center" if where == "center" else f"at the {where}"
        return Question(kind, str(rng.choice(WHERE)).format(name=item.name), sentence(answer))
    shapes = [name.split() for name in names if " " in name]
    single = [(color, shape) for color, shape in shapes if [s for _, s in shapes].count(shape) == 1]
    if not single:
        return None
    color, shape = single[rng.integers(len(single))]
    return Question(kind, str(rng.choice(COLOR)).format(shape=shape), sentence(color))


def _ask_place(rng: np.random.Generator, scene: world.Scene) -> Question | None:
    at = [(world.place(item), item.name) for item in scene.items]
    if any(where is None for where, _ in at):
        return None
    taken = [where for where, _ in at]
    every = [world.place_name(row, column) for row in range(3) for column in range(3)]
    free = [where for where in every if where not in taken]
    single = [(where, name) for where, name in at if taken.count(where) == 1]
    if not single or (rng.random() < 0.1 and free):
        where, answer = str(rng.choice(free)), "nothing"
    else:
        where, name = single[rng.integers(len(single))]
        answer = with_article(name)
    text = str(rng.choice(CENTER)) if where == "center" else str(rng.choice(PLACE)).format(place=where)
    return Question("place", text, sentence(answer))


def _ask_existence(rng: np.random.Generator, names: list[str]) -> Question:
    there = rng.random() < 0.5
    if there:
        name = names[rng.integers(len(names))]
    else:
        others = [name for name in world.classes()[1:] if name not in names]
        # Half of the absent shapes share a colour or a form with one that is there.
        near = [o for o in others if any(" " in n and (set(o.split()) & set(n.split())) for n in names)]
        pick = near if near and rng.random() < 0.5 else others
        name = pick[rng.integers(len(pick))]
        if name not in icons.NOUNS and not near and rng.random() < 0.6:
            name = str(rng.choice([o for o in icons.names() if o not in names]))
    return Question("exist", str(rng.choice(EXIST)).format(thing=with_article(name)), "Yes." if there else "No.")


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, one space."""
    words = re.sub(r"[^a-z0-9 ]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the", "some", "in", "at"))


def is_right(question: Question, answer: str) -> bool:
    """Exact match after :func:`normalise`; a list is right when it names the same things, in any order."""
    if question.kind != "list":
        return normalise(answer) == normalise(question.answer)
    return _things(answer) == _things(question.answer)


def _things(text: str) -> list[str]:
    return sorted(normalise(part) for part in re.split(r",|\band\b", text) if part.strip(" ."))
