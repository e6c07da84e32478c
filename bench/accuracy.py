"""``python -m bench.accuracy --limit 400``: held-out questions that the embedded model answers rightly, with its image and blind.

Scenes come from a seed that no training ever used; kinds take turns, so that each has an equal share; sizes are drawn as in
training. The blind model gets the same question with a mean-grey image of the same size. Ends with one JSON line.
"""

import argparse
import json
import sys

import numpy as np
from PIL import Image

from pruning.registry import METHODS, SCORERS, Method, get_method
from pruning.tokens import keep_count
from training import questions, world
from vlm.embedded import NAME
from vlm.model import Vlm, last
from vlm.open import open_vlm

HELD_OUT_SEED = 20261
GREY = (122, 117, 104)
# The shipped weights were trained on the first world: these nouns by two artists, and no text. The suite asks the whole one.
NOUNS = """airplane apple banana bear bicycle bird book bus butterfly cactus cake camel car cat clock cloud cow crab dog duck
    elephant fire fish frog giraffe guitar heart horse house key lion monkey mushroom owl panda penguin pig rabbit robot rocket
    snail spider strawberry sun train tree turtle umbrella whale zebra"""
FIRST = world.Look(nouns=tuple(NOUNS.split()), artists=("noto", "fluent-emoji-flat"))
COUNTS = (0.3, 0.22, 0.2, 0.16, 0.12)
KINDS = ("name", "place", "exist", "count", "where", "color", "list")
BOOTSTRAPS = 2000


def held_out(limit: int, seed: int = HELD_OUT_SEED) -> list[tuple[Image.Image, questions.Question]]:
    """``limit`` (picture, question) pairs, one scene each."""
    pairs, index = [], 0
    while len(pairs) < limit:
        rng = world.rng_for(seed, index)
        index += 1
        size = world.draw_size(rng)
        count = int(rng.choice(5, p=COUNTS)) + 1
        scene = world.draw(rng, size, count, smallest=56, words=0, look=FIRST)
        question = questions.ask(rng, scene, KINDS[len(pairs) % len(KINDS)])
        if question:
            pairs.append((Image.fromarray(scene.image), question))
    return pairs


def answer(vlm: Vlm, picture: Image.Image, question: str, method: Method, prune: float) -> str:
    """The model's answer through the code that the page runs."""
    image = vlm.encode(picture)
    kept = keep_count(len(image.features), prune)
    rankings = None if method.key == "none" else [vlm.rank(image, question, method, kept)]
    return last(vlm.answer([image], question, rankings, prune, max_new_tokens=40)).text


def interval(right: list[bool], seed: int = 0) -> list[float]:
    """Bootstrap 95% interval of the share of true values."""
    draws = np.random.default_rng(seed).choice(np.array(right, float), (BOOTSTRAPS, len(right))).mean(1)
    return [round(float(q), 4) for q in np.quantile(draws, (0.025, 0.975))]


def main(argv: list[str] | None = None) -> int:
    """Runs both, prints a table by kind and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    parser.add_argument("--method", default="none", choices=list(METHODS))
    parser.add_argument("--scorer", choices=list(SCORERS), help="importance (the trained one for idpruner where there is one)")
    parser.add_argument("--prune", type=float, default=0.0)
    parser.add_argument("--no-blank", action="store_true", help="leave the blind runs out")
    parser.add_argument("--show", type=int, default=0, help="print this many questions with their answers")
    arguments = parser.parse_args(argv)
    vlm = open_vlm(NAME)
    method = get_method(arguments.method, trained=vlm.scorer is not None).with_(scorer=arguments.scorer)
    pairs = held_out(arguments.limit, arguments.seed)
    seeing, blind = [], []
    for number, (picture, question) in enumerate(pairs, 1):
        text = answer(vlm, picture, question.text, method, arguments.prune)
        seeing.append(questions.is_right(question, text))
        if not arguments.no_blank:
            blank = answer(vlm, Image.new("RGB", picture.size, GREY), question.text, METHODS["none"], 0.0)
            blind.append(questions.is_right(question, blank))
        if number <= arguments.show:
            print(f"{'ok ' if seeing[-1] else 'BAD'} {question.kind:6} {question.text} -> {text} [{question.answer}]")
        if number % 50 == 0:
            print(f"  {number} of {len(pairs)}: {np.mean(seeing):.3f}", file=sys.stderr, flush=True)
    for kind in KINDS:
        chosen = [index for index, (_, question) in enumerate(pairs) if question.kind == kind]
        if chosen:
            print(f"{kind:6} {_share(seeing, chosen)}   blank {_share(blind, chosen)}   ({len(chosen)} questions)")
    record = {
        "accuracy": round(float(np.mean(seeing)), 4),
        "blank_accuracy": round(float(np.mean(blind)), 4) if blind else None,
        "n": len(pairs),
        "seed": arguments.seed,
        "interval": interval(seeing),
        "blank_interval": interval(blind) if blind else None,
        "method": arguments.method,
        "scorer": method.scorer.key if method.scorer else None,
        "prune": arguments.prune,
    }
    print(json.dumps(record))
    return 0


def _share(right: list[bool], chosen: list[int]) -> str:
    return f"{np.mean([right[index] for index in chosen]):6.1%}" if right else "  not run"


if __name__ == "__main__":
    sys.exit(main())
