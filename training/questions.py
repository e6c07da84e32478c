"""Questions about a scene whose answers follow from how it was drawn, and the rule that scores an answer."""

import re
from dataclasses import dataclass

import numpy as np

from training import charts, icons, lettering, world

KINDS = ("name", "list", "exist", "count", "place", "where", "relation", "color", "shape", "read", "chart", "document", "describe")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

NAME = ("What is in the picture?", "What is this?", "What do you see?", "What does the picture show?", "What is in this picture?")
LIST = (
    "What is in the picture?",
    "What do you see?",
    "List the objects in the picture.",
    "What does the picture show?",
    "What is in this picture?",
    "Describe the picture.",
)
PLACE = ("What is at the {place}?", "What do you see at the {place}?", "What is at the {place} of the picture?")
CENTER = ("What is in the center?", "What do you see in the center?", "What is in the center of the picture?")
EXIST = ("Is there {thing} in the picture?", "Is there {thing}?", "Do you see {thing}?", "Can you see {thing}?")
COUNT = ("How many objects are there?", "How many objects are in the picture?", "How many things do you see?")
WHERE = ("Where is the {name}?", "Where in the picture is the {name}?")
COLOR = ("What color is the {shape}?", "What is the color of the {shape}?")
SHAPE = ("What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?")
RELATION = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}
READ = ("What does it say?", "What is written in the picture?", "Read the text.", "What is the word in the picture?")
READ_AT = ("What is written at the {place}?", "What does it say at the {place}?", "Which word is at the {place}?")
READ_ALL = ("Read all words.", "Which words are in the picture?", "Read the words.")


@dataclass(frozen=True)
class Question:
    """A question of one kind with its right answer, and the turns (question, answer) before it."""

    kind: str
    text: str
    answer: str
    history: tuple[tuple[str, str], ...] = ()


def with_article(name: str) -> str:
    """("cat" -> "a cat", "owl" -> "an owl", "fire" -> "some fire")."""
    if name in icons.UNCOUNTED:
        return f"some {name}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def sentence(text: str) -> str:
    """The text as a sentence: a capital and a full stop."""
    return text[0].upper() + text[1:] + "."


def reading(*texts: lettering.Text) -> str:
    """What is written, as a sentence; spelled so that a word is the token that its visual tokens are near."""
    return f"It says {', '.join(lettering.spelled(text.text) for text in texts)}."


def listed(names: list[str]) -> str:
    """("a cat, a dog and an owl")."""
    things = [with_article(name) for name in names]
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def reading_order(scene: world.Scene, things: tuple) -> list:
    """Items or texts by the row of visual tokens that holds their centre, then from the left: the order in which they are seen."""
    return sorted(things, key=lambda thing: (int(thing.y * len(scene.labels)), thing.x))


def ask(rng: np.random.Generator, scene: world.Scene, kind: str) -> Question | None:
    """A random question of ``kind`` about the scene, or None where the scene allows none."""
    made = _ASK[kind](rng, scene)
    return Question(kind, *made) if made else None


def follow_up(rng: np.random.Generator, scene: world.Scene, first: Question, second: Question) -> Question:
    """The second question as a second turn; where the first one's answer is an item, often "Where is it?"."""
    before = (*first.history, (first.text, first.answer))
    names = [item.name for item in scene.items]
    named = [item for item in scene.items if first.kind in ("name", "place") and first.answer == sentence(with_article(item.name))]
    if named and names.count(named[0].name) == 1 and (where := world.place(named[0])) and rng.random() < 0.6:
        answer = sentence("in the center" if where == "center" else f"at the {where}")
        return Question("where", "Where is it?", answer, before)
    return Question(second.kind, second.text, second.answer, before)


def _pick(rng: np.random.Generator, texts: tuple[str, ...], **blanks: str) -> str:
    return texts[rng.integers(len(texts))].format(**blanks)


def _ask_name(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    return (_pick(rng, NAME), sentence(with_article(scene.items[0].name))) if len(scene.items) == 1 else None


def _ask_list(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    things = [item.name for item in reading_order(scene, scene.items)]
    return (_pick(rng, LIST), sentence(listed(things))) if len(things) > 1 else None


def _ask_count(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    return (_pick(rng, COUNT), sentence(NUMBERS[len(scene.items)])) if scene.items else None


def _ask_where(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    names = [item.name for item in scene.items]
    clear = [(item, where) for item in scene.items if names.count(item.name) == 1 and (where := world.place(item))]
    if not clear:
        return None
    item, where = clear[rng.integers(len(clear))]
    return _pick(rng, WHERE, name=item.name), sentence("in the center" if where == "center" else f"at the {where}")


def _ask_relation(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    """Left of, right of, above or below one item: the only other item there, or whether a named one is."""
    names = [item.name for item in scene.items]
    single = [item for item in scene.items if names.count(item.name) == 1]
    if len(single) < 2:
        return None
    first, second = (single[i] for i in rng.choice(len(single), 2, replace=False))
    words = str(rng.choice(list(RELATION)))
    axis, sign = RELATION[words]
    if rng.random() < 0.5:
        gap = ((first.y, first.x)[axis] - (second.y, second.x)[axis]) * sign
        if abs(gap) < 0.1:
            return None
        return f"Is the {first.name} {words} the {second.name}?", "Yes." if gap > 0 else "No."
    gaps = [(((i.y, i.x)[axis] - (first.y, first.x)[axis]) * sign, i.name) for i in scene.items if i is not first]
    there = [name for gap, name in gaps if gap > 0]
    if len(there) != 1 or any(abs(gap) < 0.08 for gap, _ in gaps):
        return None
    return f"What is {words} the {first.name}?", sentence(with_article(there[0]))


def _single_shapes(scene: world.Scene, part: int) -> list[tuple[str, str]]:
    """(color, shape) of the shapes whose color (0) or form (1) no other shape has."""
    shapes = [tuple(item.name.split()) for item in scene.items if " " in item.name]
    return [shape for shape in shapes if [s[part] for s in shapes].count(shape[part]) == 1]


def _ask_color(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    if not (single := _single_shapes(scene, 1)):
        return None
    color, shape = single[rng.integers(len(single))]
    return _pick(rng, COLOR, shape=shape), sentence(color)


def _ask_shape(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    if not (single := _single_shapes(scene, 0)):
        return None
    color, shape = single[rng.integers(len(single))]
    return _pick(rng, SHAPE, color=color), sentence(f"a {shape}")


def _ask_read(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    if scene.kind not in ("objects", "words") or not scene.texts:
        return None
    if len(scene.texts) == 1 and rng.random() < 0.7:
        return _pick(rng, READ), reading(scene.texts[0])
    places = [world.place(text) for text in scene.texts]
    single = [(place, text) for place, text in zip(places, scene.texts, strict=True) if place and places.count(place) == 1]
    if None not in places and single and rng.random() < 0.7:
        place, text = single[rng.integers(len(single))]
        return _pick(rng, READ_AT, place=place), reading(text)
    ordered = reading_order(scene, scene.texts)
    return (_pick(rng, READ_ALL), reading(*ordered)) if len(ordered) > 1 else None


def _ask_chart(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    if not scene.chart:
        return None
    return charts.read(rng, scene.chart) if scene.chart.printed and rng.random() < 0.2 else charts.ask(rng, scene.chart)


def _ask_document(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    if not scene.document:
        return None
    texts, answer = scene.document.facts[rng.integers(len(scene.document.facts))]
    return _pick(rng, texts), answer


def _ask_describe(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    """What a picture that is no scene of items shows."""
    if scene.chart:
        form = "bar" if scene.chart.colors else "line"
        return _pick(rng, LIST[:2] + LIST[3:]), sentence(f"a {form} chart of {', '.join(scene.chart.labels)}")
    if scene.document:
        return _pick(rng, LIST[:2] + LIST[3:]), sentence(f"a {scene.document.kind}")
    if scene.kind == "words" and len(scene.texts) == 1:
        return _pick(rng, LIST[:2] + LIST[3:]), sentence(f"the word {lettering.spelled(scene.texts[0].text)}")
    return None


def _ask_place(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    at = [(world.place(item), item.name) for item in scene.items]
    if not at or scene.texts or any(where is None for where, _ in at):
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
    return _pick(rng, CENTER) if where == "center" else _pick(rng, PLACE, place=where), sentence(answer)


def _ask_existence(rng: np.random.Generator, scene: world.Scene) -> tuple[str, str] | None:
    if not scene.items:
        return None
    names = [item.name for item in scene.items]
    there = rng.random() < 0.5
    if there:
        name = names[rng.integers(len(names))]
    else:
        others = [name for name in world.things() if name not in names]
        # Half of the absent shapes share a colour or a form with one that is there.
        near = [o for o in others if any(" " in n and (set(o.split()) & set(n.split())) for n in names)]
        pick = near if near and rng.random() < 0.35 else [o for o in others if " " not in o]
        name = pick[rng.integers(len(pick))]
    return _pick(rng, EXIST, thing=with_article(name)), "Yes." if there else "No."


_ASK = {
    "name": _ask_name,
    "list": _ask_list,
    "exist": _ask_existence,
    "count": _ask_count,
    "place": _ask_place,
    "where": _ask_where,
    "relation": _ask_relation,
    "color": _ask_color,
    "shape": _ask_shape,
    "read": _ask_read,
    "chart": _ask_chart,
    "document": _ask_document,
    "describe": _ask_describe,
}


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, one space, no "It is" or "It says" before the answer."""
    words = re.sub(r"[^a-z0-9 ]", " ", text.lower()).split()
    words = words[2:] if words[:1] == ["it"] and words[1:2] in (["is"], ["says"]) else words
    return " ".join(word for word in words if word not in ("a", "an", "the", "some", "in", "at"))


def is_right(question: Question, answer: str) -> bool:
    """Exact match after :func:`normalise`; a list is right when it names the same things, in any order."""
    if question.kind not in ("list", "describe"):
        return normalise(answer) == normalise(question.answer)
    return things(answer) == things(question.answer)


def things(text: str) -> list[str]:
    """The things of a list in words, sorted."""
    return sorted(normalise(part) for part in re.split(r",|\band\b", text) if part.strip(" ."))
