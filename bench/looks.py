"""``python -m bench.looks``: a sheet of twelve pictures of the suite and where the importance scorer looks in each."""

import argparse
import json
from pathlib import Path

from bench.suite.tasks import DEVELOPMENT_SEED, items
from pruning.registry import SCORERS
from viz import looks
from vlm.embedded import NAME
from vlm.open import open_vlm

TASKS = ("naming", "position", "counting", "attributes", "reading", "charts", "documents", "description")
PICTURES = 12


def main() -> None:
    """Draws, writes the sheet, and prints how unevenly importance is spread over each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scorer", choices=list(SCORERS), default="trained")
    parser.add_argument("--out", type=Path, default=Path("assets/readme/scorer.jpg"))
    arguments = parser.parse_args()
    vlm, scorer, pairs, shares = open_vlm(NAME), SCORERS[arguments.scorer], [], {}
    for number in range(PICTURES):
        task = TASKS[number % len(TASKS)]
        item = items(task, number // len(TASKS) + 1, DEVELOPMENT_SEED)[-1]
        image = vlm.encode(item.picture)
        importance = scorer(vlm.visual_tokens(image, item.question, frozenset(scorer.needs)))
        pairs.append((image.picture, looks.heat(image.picture, importance, image.grid)))
        top = sorted(importance, reverse=True)[: max(1, len(importance) // 10)]
        shares[f"{number + 1} {task}"] = round(float(sum(top) / importance.sum()), 3)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    looks.sheet(pairs).save(arguments.out, quality=85)
    print(json.dumps({"scorer": scorer.key, "share of importance in the top tenth": shares, "file": str(arguments.out)}))


if __name__ == "__main__":
    main()
