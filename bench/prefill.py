"""``python -m bench.prefill``: what pruning 75% and 90% of 256 visual tokens saves up to the first token, measured side by side.

Embedded model, one 448 x 448 picture, full and pruned runs interleaved, warm-up dropped. The time to the first token is the
vision tower, scoring, selection and prefill; the first is the same for all. The ideal is a prefill proportional to its tokens.
Ends with one JSON line.
"""

import argparse
import json
import sys
from statistics import median, quantiles

import numpy as np
import torch
from PIL import Image

from bench.suite.tasks import SEED
from pruning.registry import get_method
from pruning.tokens import keep_count
from training import world
from vlm.embedded import NAME
from vlm.model import Answer, Encoded, Vlm
from vlm.open import open_vlm

QUESTION = "What is in the picture?"
PRUNES = (0.0, 0.75, 0.9)
METHOD = "idpruner"


def first_token(vlm: Vlm, picture, prune: float) -> Answer:
    """One cold question up to its first token; nothing is taken from a cache."""
    vlm.forget()
    image: Encoded = vlm.encode(picture)
    rankings = [vlm.rank(image, QUESTION, get_method(METHOD))] if prune else None
    return next(vlm.answer([image], QUESTION, rankings, prune))


def main(argv: list[str] | None = None) -> int:
    """Measures, prints where the time goes and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    arguments = parser.parse_args(argv)
    vlm = open_vlm(NAME)
    picture = Image.fromarray(world.draw(world.rng_for(SEED, 0), (448, 448), 4).image)
    runs: dict[float, list[Answer]] = {prune: [] for prune in PRUNES}
    for turn in range(arguments.warmup + arguments.repeats):
        for prune in PRUNES:
            answer = first_token(vlm, picture, prune)
            if turn >= arguments.warmup:
                runs[prune].append(answer)
    print(f"{vlm.name}, {vlm.placement.reason}; {arguments.repeats} interleaved runs, medians (quartiles) in ms")
    for prune, answers in runs.items():
        one = answers[0]
        print(f"pruned {prune:4.0%}: {one.kept_tokens} of {one.visual_tokens} visual tokens, {one.prompt_tokens} in the prompt")
        for part in ("vision", "scoring", "selection", "prefill", "first_token"):
            values = [getattr(a.timings, part) * 1e3 for a in answers]
            low, _, high = quantiles(values, n=4, method="inclusive")
            print(f"    {part:12} {median(values):8.2f}  ({low:.2f} - {high:.2f})")
    print(json.dumps(summary(runs)))
    return 0


def summary(runs: dict[float, list[Answer]]) -> dict:
    """Ratios of medians, the share of the ideal gain reached, and where the rest goes (milliseconds)."""

    def middle(prune: float, part: str) -> float:
        return median(getattr(a.timings, part) for a in runs[prune])

    ttft, prefill, ideal, share, rest = {}, {}, {}, {}, {}
    full = runs[0.0][0]
    for prune in PRUNES[1:]:
        one, key = runs[prune][0], str(prune)
        ttft[key] = round(middle(0.0, "first_token") / middle(prune, "first_token"), 3)
        prefill[key] = round(middle(0.0, "prefill") / middle(prune, "prefill"), 3)
        proportional = middle(0.0, "prefill") * one.prompt_tokens / full.prompt_tokens
        ideal[key] = round(full.prompt_tokens / one.prompt_tokens, 3)
        saved = middle(0.0, "prefill") - middle(prune, "prefill")
        share[key] = round(saved / (middle(0.0, "prefill") - proportional), 3)
        rest[key] = {
            "vision_tower": round(middle(prune, "vision") * 1e3, 2),
            "scoring": round(middle(prune, "scoring") * 1e3, 2),
            "selection": round(middle(prune, "selection") * 1e3, 2),
            "prefill_above_proportional": round((middle(prune, "prefill") - proportional) * 1e3, 2),
        }
    return {
        "ttft_speedup": ttft,
        "prefill_speedup": prefill,
        "ideal_prefill_speedup": ideal,
        "share_of_ideal_gain": share,
        "rest_ms": rest,
        "visual_tokens": full.visual_tokens,
        "kept": {str(p): keep_count(full.visual_tokens, p) for p in PRUNES[1:]},
        "threads": torch.get_num_threads(),
        "numpy": np.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
