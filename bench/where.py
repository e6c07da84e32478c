"""``python -m bench.where --prune 0.75 0.9``: on which pictures and tasks a method is ahead of its rivals, and where it is not.

The questions of the suite are grouped by what their scene stands on (plain, patterned, a photograph) and by their task. Of every
group: the mean over its tasks of pruned / unpruned, and the paired bootstrap 95% interval of the method's lead in points.
Answers that assets/results/scores.jsonl or runs/suite hold are not asked again. Ends with one JSON line, which ``--out`` writes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.headline import KNOWN, Scores, by_column, interval, kept
from bench.suite.evaluate import Setting
from bench.suite.stored import commit, type_of
from bench.suite.tasks import NINE, SEED, Item, items
from bench.timing import positive
from vlm.embedded import NAME
from vlm.open import open_vlm

RIVALS = ("topk", "mmr training-free", "farthest")
# Charts and documents stand on paper of their own.
GROUNDS = {
    "photographic ground": ("photograph",),
    "patterned ground": ("striped", "checked", "cloudy"),
    "plain ground": ("plain", "shaded"),
}
FEWEST = 20  # questions of a task; of fewer, no ratio is worth a share of the mean


def groups_of(grounds: dict[str, list[str | None]]) -> dict[str, Scores]:
    """Group -> task -> bool [questions]: ``GROUNDS`` first, then every task; grounds: of each task's questions."""
    found: dict[str, Scores] = {}
    for name, kinds in GROUNDS.items():
        rows = {task: np.isin(np.array(of_task, dtype=str), kinds) for task, of_task in grounds.items()}
        found[name] = {task: chosen for task, chosen in rows.items() if chosen.sum() >= FEWEST}
    return found | {task: {task: np.ones(len(of_task), bool)} for task, of_task in grounds.items()}


def compared(full: Scores, mine: Scores, rivals: dict[str, Scores], chosen: Scores) -> dict:
    """What the method (``mine``) and each rival keep of the chosen questions, and the method's lead."""

    def of(scores: Scores) -> Scores:
        return {task: scores[task][rows] for task, rows in chosen.items()}

    full, mine = of(full), of(mine)
    own = kept(full, mine)
    record: dict = {"n": sum(int(rows.sum()) for rows in chosen.values()), "kept": round(100 * own, 2), "rivals": {}}
    for name, scores in rivals.items():
        theirs = of(scores)
        other = kept(full, theirs)
        lead = {"kept": round(100 * other, 2), "lead": round(100 * (own - other), 2), "interval": interval(full, mine, theirs)}
        record["rivals"][name] = lead
    return record


def main(argv: list[str] | None = None) -> int:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="idpruner", choices=KNOWN, metavar="NAME")
    parser.add_argument("--rivals", nargs="+", default=RIVALS, choices=KNOWN, metavar="NAME")
    parser.add_argument("--prune", type=float, nargs="+", default=[0.75, 0.9])
    parser.add_argument("--limit", type=positive, default=500, help="questions a task")
    parser.add_argument("--out", type=Path, help="where the JSON line is also written; the page reads assets/results/where.json")
    arguments = parser.parse_args(argv)
    vlm = open_vlm(NAME)
    names, grounds = (arguments.method, *arguments.rivals), {}

    def drawn() -> Iterator[tuple[str, list[Item]]]:
        for task in NINE:
            asked = items(task, arguments.limit, SEED)
            grounds[task] = [item.ground for item in asked]
            yield task, asked

    found, scores = by_column(vlm, drawn(), [Setting("none")], names, arguments.prune, committed=True)
    full = found[Setting("none")]
    groups = groups_of(grounds)
    head = {"method": arguments.method, "seed": SEED, "commit": commit(), "dtype": type_of(vlm)}
    record = head | {"n": sum(map(len, full.values())), "prune": {}}
    for share in arguments.prune:
        rivals = {name: scores[name, share] for name in arguments.rivals}
        of_share = {
            group: compared(full, scores[arguments.method, share], rivals, chosen) for group, chosen in groups.items() if chosen
        }
        record["prune"][str(share)] = of_share
        print(f"{share:.0%} pruned: what {arguments.method} keeps, and its lead over each rival")
        for group, found in of_share.items():
            leads = (f"{name} {r['lead']:+.1f} ({r['interval'][0]} to {r['interval'][1]})" for name, r in found["rivals"].items())
            print(f"    {group:20} {found['n']:5} questions  {found['kept']:6.2f}%  {', '.join(leads)}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
