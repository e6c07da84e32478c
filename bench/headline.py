"""``python -m bench.headline --method idpruner --prune 0.75 0.9``: how much of the unpruned accuracy pruning keeps, on nine tasks.

As in the paper: for every task pruned / unpruned, then the unweighted mean over tasks. Beside the method stand its baselines, or
what ``--methods`` names ("all": every one there is). Intervals are bootstraps over questions, the same questions for every method.
``--cost`` adds the time up to the first token and the memory at its peak. Restartable: answers are kept in runs/suite;
``--committed`` reads those that earlier runs of the same weights left in assets/results, too.
Ends with one JSON line, which ``--out`` writes to a file, too.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench.cost import costs
from bench.suite.evaluate import Setting
from bench.suite.stored import answered, answered_at, commit, type_of
from bench.suite.tasks import DEVELOPMENT_SEED, NINE, SEED, TASKS, Item, items
from bench.timing import positive
from pruning.registry import METHODS
from vlm.embedded import NAME
from vlm.model import Vlm
from vlm.open import open_vlm

LAMBDA = 0.5
RANDOM_SEEDS = 5
BOOTSTRAPS = 1000
COST_PICTURES = 8
KNOWN = (*METHODS, "mmr training-free")
BASELINES = ("topk", "mmr training-free", "farthest", "random", "uniform", "down-sampling")

Scores = dict[str, np.ndarray]  # by task, [questions]


def settings_of(name: str, prune: float, scorer: str | None = None) -> list[Setting]:
    """The settings behind a column's name; several for random, whose seeds are averaged. scorer: that of idpruner and topk."""
    if name == "random":
        return [Setting("random", prune, seed=seed) for seed in range(RANDOM_SEEDS)]
    if name == "mmr training-free":
        return [Setting("idpruner", prune, lam=LAMBDA, scorer="neg-cos-mean")]
    takes = METHODS[name].takes_scorer if name in METHODS else False
    return [Setting(name, prune, lam=LAMBDA if name == "idpruner" else None, scorer=scorer if takes else None)]


def by_column(
    vlm: Vlm,
    asked: Iterable[tuple[str, list[Item]]],
    unpruned: list[Setting],
    names: Iterable[str],
    shares: list[float],
    committed: bool,
) -> tuple[dict[Setting, Scores], dict[tuple[str, float], Scores]]:
    """Scores of every unpruned setting, and of every (column, pruned share), its seeds averaged.

    asked: (task, its questions), one after the other: the pictures of all tasks at once would take gigabytes.
    """
    columns = {(name, share): settings_of(name, share, "trained" if vlm.scorer else None) for name in names for share in shares}
    settings = [*unpruned, *(setting for group in columns.values() for setting in group)]
    found = {task: answered(vlm, task, questions, settings, committed) for task, questions in asked}
    whole = {setting: {task: scores[setting] for task, scores in found.items()} for setting in unpruned}
    averaged = {
        key: {task: np.mean([scores[setting] for setting in group], 0) for task, scores in found.items()}
        for key, group in columns.items()
    }
    return whole, averaged


def kept(full: Scores, pruned: Scores, rows: Scores | None = None) -> float:
    """Mean over tasks of pruned / unpruned; ``rows`` picks questions (a bootstrap draw).

    A task of which nothing was right unpruned has no ratio and is left out: a draw of few questions may hold one.
    """
    ratios = []
    for task in full:
        chosen = slice(None) if rows is None else rows[task]
        if right := full[task][chosen].mean():
            ratios.append(pruned[task][chosen].mean() / right)
    return float(np.mean(ratios)) if ratios else 0.0


def interval(full: Scores, pruned: Scores, less: Scores | None = None) -> list[float]:
    """Bootstrap 95% interval of :func:`kept`, or of its difference to what ``less`` keeps (paired)."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(BOOTSTRAPS):
        rows = {task: rng.integers(0, len(scores), len(scores)) for task, scores in full.items()}
        draws.append(kept(full, pruned, rows) - (kept(full, less, rows) if less else 0.0))
    return [round(100 * float(q), 2) for q in np.quantile(draws, (0.025, 0.975))]


def mean_interval(scores: np.ndarray) -> list[float]:
    """Bootstrap 95% interval of a mean."""
    draws = np.random.default_rng(0).choice(scores, (BOOTSTRAPS, len(scores))).mean(1)
    return [round(100 * float(q), 2) for q in np.quantile(draws, (0.025, 0.975))]


def main(argv: list[str] | None = None) -> int:
    """Prints the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="idpruner")
    parser.add_argument("--prune", type=float, nargs="+", default=[0.75, 0.9])
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="what stands beside it, or all")
    parser.add_argument("--limit", type=positive, default=500, help="questions a task")
    parser.add_argument("--cost", action="store_true", help="time and memory, too; on an idle machine")
    parser.add_argument("--out", type=Path, help="where the JSON line is also written")
    parser.add_argument("--check", type=Path, help="a record of --out: fail where the two intervals of a method do not meet")
    parser.add_argument("--unpruned-only", action="store_true", help="accuracy with the picture and with a blank one, no pruning")
    parser.add_argument("--committed", action="store_true", help="take answers from assets/results/scores.jsonl where it has them")
    parser.add_argument("--development", action="store_true", help="the development split: what is tuned is tuned on it")
    arguments = parser.parse_args(argv)
    asked = [arguments.method, *(name for name in arguments.methods or () if name != "all")]
    if unknown := [name for name in asked if name not in KNOWN]:
        parser.error(f"unknown methods {', '.join(unknown)}; known: {', '.join(KNOWN)}, and all beside a method")
    try:
        other = json.loads(arguments.check.read_text()) if arguments.check else None
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.check} cannot be read: {error}")
    if not all(0 < share < 1 for share in arguments.prune):
        parser.error(f"pruned shares lie between 0 and 1, got {arguments.prune}")
    vlm, seed = open_vlm(NAME), DEVELOPMENT_SEED if arguments.development else SEED
    tasks = list(TASKS) if arguments.unpruned_only else list(NINE)
    names = [] if arguments.unpruned_only else columns(arguments.method, arguments.methods)
    unpruned = [Setting("none"), *([Setting("blank")] if arguments.unpruned_only else [])]
    drawn = ((task, items(task, arguments.limit, seed)) for task in tasks)
    found, pruned = by_column(vlm, drawn, unpruned, names, arguments.prune, arguments.committed)
    full, blank = found[unpruned[0]], found[unpruned[-1]]
    for task in tasks:
        beside = f"   blank {100 * blank[task].mean():6.2f}%" if arguments.unpruned_only else ""
        print(f"{task:14} {100 * full[task].mean():6.2f}%  {mean_interval(full[task])}{beside}")
    mean = round(100 * float(np.mean([full[task].mean() for task in NINE])), 2)
    print(f"{'mean of nine':14} {mean:6.2f}%")
    record = {
        "n": sum(len(full[task]) for task in NINE),
        "unpruned": {task: round(100 * float(full[task].mean()), 2) for task in tasks},
        "unpruned_interval": {task: mean_interval(full[task]) for task in tasks},
        "mean": mean,
        "seed": seed,
        "commit": commit(),
        "dtype": type_of(vlm),
        "answered": answered_at(),
        "kept": {},
        "interval": {},
        "pruned": {},
        "ahead": {},
    }
    if arguments.unpruned_only:
        record["blank"] = {task: round(100 * float(blank[task].mean()), 2) for task in tasks}
    for name, share in pruned:
        values = pruned[name, share]
        record["kept"].setdefault(name, {})[str(share)] = round(100 * kept(full, values), 2)
        record["interval"].setdefault(name, {})[str(share)] = interval(full, values)
        by_task = {task: round(100 * float(values[task].mean()), 2) for task in tasks}
        record["pruned"].setdefault(name, {})[str(share)] = by_task
        if name != arguments.method:
            ahead = interval(full, pruned[arguments.method, share], values)
            record["ahead"].setdefault(name, {})[str(share)] = ahead
        print(
            f"{name:18} {share:4.0%} pruned keeps {record['kept'][name][str(share)]:6.2f}%  {record['interval'][name][str(share)]}"
        )
    if arguments.cost:
        record["cost"] = cost_of(vlm, names, arguments.prune)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    apart = disagreements(record, other) if other else []
    for line in apart:
        print(line, file=sys.stderr)
    return 1 if apart else 0


def disagreements(record: dict, other: dict) -> list[str]:
    """Where both measured a method at a pruned share and their intervals do not meet, in words."""
    found, compared = [], 0
    for name, by_share in record["interval"].items():
        for share, mine in by_share.items():
            theirs = other["interval"].get(name, {}).get(share)
            compared += bool(theirs)
            if theirs and not (mine[0] <= theirs[1] and theirs[0] <= mine[1]):
                found.append(f"{name} at {float(share):.0%} pruned keeps {mine} here and {theirs} there.")
    return found if compared else ["Nothing was measured by both."]


def columns(method: str, beside: list[str] | None) -> list[str]:
    """The method and what stands beside it, each once; of "all", VisionSelector is left out: it is top-k of the trained scorer."""
    if "all" in (beside or ()):
        able = [key for key in METHODS if key not in ("none", "visionselector")]
        beside = [*able, "mmr training-free"]
    return list(dict.fromkeys([method, *(beside or BASELINES)]))


def cost_of(vlm: Vlm, names: list[str], shares: list[float]) -> dict:
    """{method: {share: what :class:`bench.cost.Cost` holds}}, the unpruned model as "none"."""
    asked = [(item.picture, item.question) for item in items("description", COST_PICTURES)]
    scorer = "trained" if vlm.scorer else None
    wanted = {(name, str(share)): settings_of(name, share, scorer)[0] for name in names for share in shares}
    found = costs(vlm, asked, [Setting("none"), *dict.fromkeys(wanted.values())])
    out = {"none": {"0": asdict(found[Setting("none")])}}
    for (name, share), setting in wanted.items():
        out.setdefault(name, {})[share] = asdict(found[setting])
    return out


if __name__ == "__main__":
    sys.exit(main())
