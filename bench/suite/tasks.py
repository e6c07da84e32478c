"""Nine tasks, drawn from seeds that no training uses, with difficulty set so that pruning matters.

Small things, text in corners, crowded and near-empty pictures, 256 visual tokens mostly. Fonts are those that training never
saw; pictograms of unseen (noun, artist) pairs are a tenth task that the mean leaves out.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bench.suite import scores
from training import charts, questions, world

SEED = 20262
DEVELOPMENT_SEED = 20263
SIZES, SIZE_SHARES = ((448, 448), (336, 448), (448, 336), (336, 336), (224, 448)), (0.68, 0.08, 0.08, 0.1, 0.06)
SEEN = world.Look(unseen_fonts=True)
UNSEEN = world.Look(unseen_icons=True, unseen_fonts=True)

Drawn = tuple[world.Scene, questions.Question | None]


@dataclass(frozen=True)
class Task:
    """draw: generator and (height, width) -> scene and question, None where the scene allows none; score: (said, right) -> 0..1."""

    draw: Callable[[np.random.Generator, tuple[int, int]], Drawn]
    score: Callable[[str, str], float]
    two_answers: bool = False


@dataclass(frozen=True)
class Item:
    """One question of the suite; ground: what the scene stands on, one of ``grounds.KINDS``, None for charts and documents."""

    task: str
    picture: Image.Image
    question: str
    answer: str
    ground: str | None = None

    def score(self, said: str) -> float:
        """What the answer ``said`` is worth, 0..1."""
        return TASKS[self.task].score(said, self.answer)


def _asked(kind: str, scene: world.Scene, rng: np.random.Generator) -> Drawn:
    return scene, questions.ask(rng, scene, kind)


def _naming(look: world.Look) -> Callable:
    def draw(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
        return _asked("name", world.draw(rng, size, 1, smallest=44, words=0, look=look), rng)

    return draw


def _objects(kind: str, low: int, high: int, words: int = 0) -> Callable:
    def draw(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
        return _asked(kind, world.draw(rng, size, int(rng.integers(low, high)), smallest=44, words=words, look=SEEN), rng)

    return draw


def _position(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
    kind = ("place", "where", "relation")[rng.integers(3)]
    return _objects(kind, 2, 7)(rng, size)


def _attributes(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
    return _objects(("color", "shape")[rng.integers(2)], 2, 7)(rng, size)


def _reading(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
    scene = world.draw(rng, size, int(rng.integers(0, 4)), words=int(rng.integers(1, 4)), look=SEEN)
    return _asked("read", scene, rng)


def _chart(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
    scene = world.draw_chart(rng, size, SEEN)
    return scene, questions.Question("chart", *charts.ask(rng, scene.chart))


def _document(rng: np.random.Generator, size: tuple[int, int]) -> Drawn:
    return _asked("document", world.draw_document(rng, size, SEEN), rng)


TASKS: dict[str, Task] = {
    "naming": Task(_naming(SEEN), scores.exact),
    "existence": Task(_objects("exist", 1, 8), scores.exact, two_answers=True),
    "counting": Task(_objects("count", 1, 8), scores.exact),
    "position": Task(_position, scores.exact),
    "attributes": Task(_attributes, scores.exact),
    "reading": Task(_reading, scores.exact),
    "charts": Task(_chart, scores.relaxed),
    "documents": Task(_document, scores.anls),
    "description": Task(_objects("list", 2, 7), scores.recall),
    "unseen naming": Task(_naming(UNSEEN), scores.exact),
}
NINE = tuple(task for task in TASKS if task != "unseen naming")


def items(task: str, limit: int, seed: int = SEED) -> list[Item]:
    """``limit`` questions of a task, one scene each; the first n do not depend on ``limit``."""
    found, index = [], 0
    while len(found) < limit:
        # A task's scenes do not depend on which other tasks there are.
        rng = np.random.default_rng((seed, zlib.crc32(task.encode()), index))
        index += 1
        size = SIZES[rng.choice(len(SIZES), p=SIZE_SHARES)]
        scene, question = TASKS[task].draw(rng, size)
        if question:
            found.append(Item(task, Image.fromarray(scene.image), question.text, question.answer, scene.ground))
    return found
