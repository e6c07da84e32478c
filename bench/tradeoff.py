"""``python -m bench.tradeoff --prune 0.75``: accuracy at every lambda, beside the importance and the diversity of what is kept.

The paper (IDPruner, arXiv 2602.13315, section 3) draws importance against the Hopkins statistic and leaves accuracy out; this
measures all three on the same questions. ``--images FILE ...`` draws the curve alone, averaged over pictures, with the naive
hybrid and DPP beside MMR. Restartable: scores are kept in runs/suite. Writes ``--out`` and ends with one JSON line.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from bench.headline import Scores
from bench.suite.evaluate import Setting
from bench.suite.stored import ROOT, answered, commit, type_of
from bench.suite.tasks import DEVELOPMENT_SEED, NINE, SEED, Item, items
from pruning.registry import METHODS, SCORERS
from pruning.tokens import keep_count
from pruning.tradeoff import MIDDLE, Measures, falls, lambdas, matched, mean_measures, measure, space, sweep
from vlm.embedded import NAME
from vlm.images import open_image
from vlm.model import Vlm
from vlm.open import open_vlm

RESULTS = ROOT / "assets" / "results"
BESIDE = ("topk", "farthest", "dpp", "random", "uniform")
BOOTSTRAPS, SEEDS = 1000, 5
# The scorers of the suite's pictures do not read the question; the curve of a picture alone needs one all the same.
ANY_QUESTION = "What is in the picture?"


def settings_of(prune: float, steps: int, scorer: str) -> list[list[Setting]]:
    """The settings of every point: MMR at each lambda, then the registry's methods beside it; several seeds where it is random."""
    curve = [[Setting("idpruner", prune, lam=lam, scorer=scorer)] for lam in lambdas(steps).tolist()]
    for key in BESIDE:
        one = Setting(key, prune, scorer=scorer if METHODS[key].takes_scorer else None)
        curve.append([replace(one, seed=seed) for seed in range(SEEDS)] if METHODS[key].takes_seed else [one])
    return curve


def measured(vlm: Vlm, asked: list[Item], settings: list[Setting], scorer: str) -> dict[Setting, list[Measures]]:
    """What every setting keeps of every picture, all by the same importance; a picture that keeps fewer than two is left out."""
    found: dict[Setting, list[Measures]] = {setting: [] for setting in settings}
    for item in asked:
        image = vlm.encode(item.picture)
        n = len(image.features)
        importance = vlm.rank(image, item.question, METHODS["topk"].with_(scorer=scorer)).importance
        for prune in dict.fromkeys(setting.prune for setting in settings):
            k = keep_count(n, prune)
            if k < 2:
                continue
            shared = space(image.features.float(), importance, k)
            for setting in (s for s in settings if s.prune == prune):
                kept = vlm.rank(image, item.question, setting.configured()).keep(k)
                found[setting].append(measure(shared, kept))
    return found


def interval(scores: dict[str, np.ndarray]) -> list[float]:
    """Bootstrap 95% interval, in percent, of the mean over tasks of the mean over questions."""
    rng = np.random.default_rng(0)
    draws = [np.mean([rng.choice(s, len(s)).mean() for s in scores.values()]) for _ in range(BOOTSTRAPS)]
    return [round(100 * float(q), 2) for q in np.quantile(draws, (0.025, 0.975))]


def rounded(measures: Measures) -> dict[str, float]:
    """For a file: four digits."""
    return {name: round(value, 4) for name, value in asdict(measures).items()}


def correlations(points: list[dict]) -> dict[str, float | None]:
    """Spearman's rank correlation of accuracy with each measure over MMR's lambdas; None where either does not vary."""
    curve = [p for p in points if p["method"] == "idpruner"]
    found = {}
    for name in ("retention", "hopkins", "coverage", "mean_distance"):
        sides = [[p["mean"] for p in curve], [p[name] for p in curve]]
        varies = all(len(set(side)) > 1 for side in sides)
        found[name] = round(float(spearmanr(*sides).statistic), 3) if varies else None
    return found


def accuracy(vlm: Vlm, shares: list[float], tasks: list[str], limit: int, seed: int, steps: int) -> dict:
    """The points of every pruned share: accuracy by task, its mean and interval, and the measures."""
    scorer = "trained" if vlm.scorer else "neg-cos-mean"
    settings = {share: settings_of(share, steps, scorer) for share in shares}
    flat = [setting for points in settings.values() for group in points for setting in group]
    full: dict[str, np.ndarray] = {}
    scores: dict[Setting, Scores] = {setting: {} for setting in flat}
    worth: dict[Setting, list[Measures]] = {setting: [] for setting in flat}
    for task in tasks:
        asked = items(task, limit, seed)
        found = answered(vlm, task, asked, [Setting("none"), *flat])
        full[task] = found[Setting("none")]
        of_task = measured(vlm, asked, flat, scorer)
        for setting in flat:
            scores[setting][task] = found[setting]
            worth[setting] += of_task[setting]
    record: dict = {"scorer": scorer, "tasks": tasks, "n": limit * len(tasks), "unpruned": _accuracy(full), "prune": {}}
    for share, groups in settings.items():
        # All answer the same questions: intervals of their own may overlap where the difference is plain.
        middle = min(groups[:steps], key=lambda group: abs(group[0].lam - MIDDLE))
        points = [_point(group, middle, scores, worth) for group in groups if worth[group[0]]]
        record["prune"][str(share)] = {"points": points, "spearman": correlations(points)}
    return record


def _point(
    group: list[Setting], middle: list[Setting], scores: dict[Setting, Scores], worth: dict[Setting, list[Measures]]
) -> dict:
    """One point from the settings of one method that differ in their seed; ahead: 95% interval of its lead over ``middle``."""

    def mean(settings: list[Setting]) -> Scores:
        return {task: np.mean([scores[setting][task] for setting in settings], 0) for task in scores[settings[0]]}

    mine, other = mean(group), mean(middle)
    ahead = interval({task: mine[task] - other[task] for task in mine})
    measures = mean_measures([m for setting in group for m in worth[setting]])
    return {"method": group[0].method, "lam": group[0].lam} | _accuracy(mine) | {"ahead": ahead} | rounded(measures)


def _accuracy(scores: dict[str, np.ndarray]) -> dict:
    by_task = {task: round(100 * float(s.mean()), 2) for task, s in scores.items()}
    return {"mean": round(float(np.mean(list(by_task.values()))), 2), "interval": interval(scores), "by_task": by_task}


def curves(vlm: Vlm, paths: list[str], shares: list[float], steps: int) -> dict:
    """The sweep averaged over pictures: its points, how many hybrids MMR matches, in how many steps of lambda H falls."""
    scorer = "trained" if vlm.scorer else "neg-cos-mean"
    method = METHODS["topk"].with_(scorer=SCORERS[scorer])
    record: dict = {"scorer": scorer, "images": len(paths), "prune": {}}
    encoded = []
    for path in paths:
        image = vlm.encode(open_image(path))
        encoded.append((image.features.float(), vlm.rank(image, ANY_QUESTION, method).importance))
    for share in shares:
        found = [sweep(x, importance, keep_count(len(x), share), steps) for x, importance in encoded]
        points = []
        for index, point in enumerate(found[0].points):
            # A sweep's points come in the same order for every picture.
            values = mean_measures([one.points[index].measures for one in found])
            points.append({"method": point.method, "lam": point.lam} | rounded(values))
        inner = [matched(one.of("topk-farthest")[1:-1], one.of("idpruner")) for one in found]
        down = [falls([p.measures.hopkins for p in one.of("idpruner")]) for one in found]
        record["prune"][str(share)] = {
            "points": points,
            "hybrids_matched": round(float(np.mean(inner)), 4),
            "dpp_matched": round(float(np.mean([matched(one.of("dpp"), one.of("idpruner")) for one in found])), 4),
            "hopkins_falls": round(float(np.mean([count for count, _ in down])), 2),
            "largest_fall": round(max(worst for _, worst in down), 4),
        }
    return record


def table(record: dict) -> str:
    """The points, a line each."""
    lines = []
    for share, of_share in record["prune"].items():
        lines.append(f"{float(share):.0%} pruned: method, lambda, accuracy, I, H, coverage, mean distance")
        for p in of_share["points"]:
            lam = "" if p["lam"] is None else f"{p['lam']:.2f}"
            right = f"{p['mean']:6.2f}%" if "mean" in p else "      -"
            values = (
                f"{p['retention']:.4f}  {p['hopkins']:.4f} +- {p['hopkins_std']:.4f}  {p['coverage']:.4f}  {p['mean_distance']:.4f}"
            )
            lines.append(f"  {p['method']:10} {lam:>5}  {right}  {values}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prune", type=float, nargs="+", default=[0.75])
    parser.add_argument("--limit", type=int, default=100, help="questions a task")
    parser.add_argument("--tasks", nargs="+", choices=list(NINE), default=list(NINE), metavar="TASK")
    parser.add_argument("--steps", type=int, help="values of lambda from 0 to 1 (11, with --images 21)")
    parser.add_argument("--suite", action="store_true", help="the suite's own questions; without it those for development")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="the curve alone, averaged over these pictures")
    parser.add_argument("--out", type=Path, help="the file to write (assets/results/tradeoff.json)")
    arguments = parser.parse_args(argv)
    vlm = open_vlm(NAME)
    seed = SEED if arguments.suite else DEVELOPMENT_SEED
    head = {"commit": commit(), "dtype": type_of(vlm), "seed": None if arguments.images else seed}
    if arguments.images:
        record = head | curves(vlm, arguments.images, arguments.prune, arguments.steps or 21)
    else:
        record = head | accuracy(vlm, arguments.prune, arguments.tasks, arguments.limit, seed, arguments.steps or 11)
    out = arguments.out or RESULTS / ("tradeoff-images.json" if arguments.images else "tradeoff.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
