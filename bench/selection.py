"""How fast are the exact greedy kernels, and are they exact?

    python -m bench.selection [--quick] [--repeats 5]

Every size is timed at both feature widths; "speedup" in the JSON line takes the width at which the size occurs: the embedded
model has at most 256 tokens of 576, larger counts come from Qwen2.5-VL-7B with 3584. One thread throughout: BLAS threads wait
for each other on a shared machine, which slowed the reference tenfold in a trial, to the kernel's false credit. Each timed
function starts from the features, so unit vectors and similarities are inside every number. Three opponents: the reference
(the numpy loop of the definition, whose float64 sums make it exact), the same loop in float32, and the gemm loop (the N x N
matrix in one float32 product, then K steps), the form AngelSlim ships. K = N / 4, lambda 0.5, clustered features with
duplicates, made by program: not the tokens of a real model. Every greedy method follows, against the numpy loop of its
definition at the width at which the size occurs, and as a batch of eight images, one after the other. DivPrune's first pick, a
product of all pairs in float64, is the same in both of its forms.
Ends with one JSON line; exit code 1 when an order differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable

import numpy as np
import torch

from bench.timing import measure
from pruning.kernels import (
    dpp_order,
    dpp_reference,
    greedy_numba,
    id_selection_order,
    id_selection_reference,
    mmr_order,
    mmr_reference,
    scope_order,
    scope_reference,
    unit_rows,
    warm_up,
)
from pruning.scorers import NegCosMean
from pruning.selectors.divprune import most_isolated
from pruning.selectors.topk_farthest import pool_of
from pruning.tokens import VisualTokens

# tokens: the feature width at which so many occur
SIZES = {256: 576, 1024: 3584, 2691: 3584}
DIMS = (576, 3584)
LAMBDAS = (0.0, 0.3, 0.5, 0.7, 1.0)
BATCH = 8


def divprune(order: Callable, u: np.ndarray, k: int) -> np.ndarray:
    """DivPrune by one of the two forms of MMR."""
    first = np.zeros(len(u), np.float32)
    first[most_isolated(u)] = 1.0
    return order(u, first, 0.0, k)


def topk_farthest(order: Callable, u: np.ndarray, v: np.ndarray, k: int) -> np.ndarray:
    """The naive hybrid at lambda 0.5 by one of the two forms of MMR."""
    pool = pool_of(v, 0.5, k)
    return pool[order(np.ascontiguousarray(u[pool]), v[pool], 0.0, k)]


# The fast form and the definition, both (units, importance, k) -> order.
GREEDY = {
    "mmr": (lambda u, v, k: mmr_order(u, v, 0.5, k), lambda u, v, k: mmr_reference(u, v, 0.5, k)),
    "divprune": (lambda u, v, k: divprune(mmr_order, u, k), lambda u, v, k: divprune(mmr_reference, u, k)),
    "topk-farthest": (lambda u, v, k: topk_farthest(mmr_order, u, v, k), lambda u, v, k: topk_farthest(mmr_reference, u, v, k)),
    "farthest": (lambda u, v, k: mmr_order(u, v, 0.0, k), lambda u, v, k: mmr_reference(u, v, 0.0, k)),
    "dpp": (dpp_order, lambda u, v, k: dpp_reference(u, v.astype(np.float64), k)),
    "scope": (lambda u, v, k: scope_order(u, v, 1.0, k), lambda u, v, k: scope_reference(u, v.astype(np.float64), k)),
    "id-selection": (lambda u, v, k: id_selection_order(u, v, 20.0, k), lambda u, v, k: id_selection_reference(u, v, 20.0, k)),
}


def mmr_float32_loop(units: np.ndarray, importance: np.ndarray, lam: float, k: int) -> np.ndarray:
    """The definition's loop with float32 sums; equal to it up to rounding."""
    relevance, penalty = np.float32(lam) * importance, np.full(len(units), -np.inf, np.float32)
    weight, best, order = np.float32(1 - lam), int(importance.argmax()), []
    for _ in range(k):
        order.append(best)
        relevance[best] = -np.inf
        np.maximum(penalty, weight * (units @ units[best]), out=penalty)
        best = int((relevance - penalty).argmax())
    return np.array(order)


def mmr_gemm_loop(units: np.ndarray, importance: np.ndarray, lam: float, k: int) -> np.ndarray:
    """MMR from a float32 N x N cosine matrix and K torch steps; equal to the definition up to rounding."""
    rows = torch.from_numpy(units)
    similarity = rows @ rows.T
    relevance = lam * torch.from_numpy(importance)
    best = int(torch.from_numpy(importance).argmax())
    order = [best]
    closest = similarity[best].clone()
    relevance[best] = -torch.inf
    for _ in range(k - 1):
        best = (relevance - (1 - lam) * closest).argmax().item()
        order.append(best)
        relevance[best] = -torch.inf
        torch.maximum(closest, similarity[best], out=closest)
    return np.array(order)


def clustered(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    """[n, dim] like visual tokens: a common direction (cosines near 0.3), clusters, 5% exact duplicates."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(4, n // 40), dim, generator=g)
    member = torch.randint(len(centres), (n,), generator=g)
    common = torch.randn(1, dim, generator=g)
    x = 0.85 * common + 0.7 * centres[member] + 0.85 * torch.randn(n, dim, generator=g)
    x[n // 2 : n // 2 + n // 20] = x[: n // 20]
    return x


def importance_of(features: torch.Tensor) -> np.ndarray:
    return NegCosMean()(VisualTokens(features, (1, len(features))))


def hard_cases(n: int, dim: int) -> dict[str, tuple[torch.Tensor, np.ndarray]]:
    """Features and importance where ties, duplicates and zero rows abound."""
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(n, dim, generator=g)
    real = clustered(n, dim)
    holes = real.clone()
    holes[::7] = 0.0
    return {
        "clustered": (real, importance_of(real)),
        "random": (noise, importance_of(noise)),
        "each token three times": (noise[torch.arange(n) // 3], importance_of(noise[torch.arange(n) // 3])),
        "constant importance": (real, np.zeros(n, np.float32)),
        "all features equal": (noise[:1].repeat(n, 1), importance_of(noise)),
        "zero rows": (holes, importance_of(holes)),
        "signs only": (noise.sign(), np.round(importance_of(noise), 1)),
    }


def check_exact(n: int, dim: int, k: int) -> bool:
    """Compare the first ``k`` picks of the kernel in use and the reference on every hard case and lambda."""
    exact = True
    for name, (features, importance) in hard_cases(n, dim).items():
        units = unit_rows(features)
        for lam in LAMBDAS:
            fast, slow = mmr_order(units, importance, lam, k), mmr_reference(units, importance, lam, k)
            if not np.array_equal(fast, slow):
                exact = False
                print(f"NOT EXACT: {name}, lambda {lam}: {int((fast != slow).sum())} of {k} places differ")
    return exact


def check_greedy(n: int, dim: int, k: int) -> bool:
    """As :func:`check_exact`, for the other methods."""
    exact = True
    for case, (features, importance) in hard_cases(n, dim).items():
        units = unit_rows(features)
        for name, (fast, slow) in GREEDY.items():
            differ = int((fast(units, importance, k) != slow(units, importance, k)).sum())
            if differ:
                exact = False
                print(f"NOT EXACT: {name}, {case}: {differ} of {k} places differ")
    return exact


def time_greedy(n: int, dim: int, repeats: int) -> dict[str, dict]:
    """Print one row per method; return milliseconds, ratios to the definition (one image, a batch), and whether orders agree."""
    images = [clustered(n, dim, seed) for seed in range(BATCH)]
    values, k, rows = [importance_of(x) for x in images], n // 4, {}
    for name, (fast, slow) in GREEDY.items():
        runs = {
            "one": lambda f=fast: f(unit_rows(images[0]), values[0], k),
            "batch": lambda f=fast: [f(unit_rows(x), v, k) for x, v in zip(images, values, strict=True)],
            "definition": lambda f=slow: f(unit_rows(images[0]), values[0], k),
        }
        exact = bool(np.array_equal(runs["one"](), runs["definition"]()))
        t = {key: 1e3 * timing.median for key, timing in measure(runs, repeats=repeats, warmup=0).items()}
        rows[name] = {
            "exact": exact,
            "ms": round(t["one"], 3),
            "batch_ms_per_image": round(t["batch"] / BATCH, 3),
            "speedup": round(t["definition"] / t["one"], 2),
            "batch_speedup": round(BATCH * t["definition"] / t["batch"], 2),
        }
        print(f"{n:5d} {dim:5d} {k:4d} {name:13} {json.dumps(rows[name])}", flush=True)
    return rows


def time_size(n: int, dim: int, repeats: int) -> dict[str, float]:
    """Print one table row; return each opponent's time over the kernel's."""
    features = clustered(n, dim)
    importance = importance_of(features)
    k = n // 4
    kernels = {"fast": mmr_order, "reference": mmr_reference, "float32 loop": mmr_float32_loop, "gemm loop": mmr_gemm_loop}
    runs = {name: (lambda f=f: f(unit_rows(features), importance, 0.5, k)) for name, f in kernels.items()}
    t = measure(runs, repeats=repeats, warmup=1)
    cells = "".join(f"{1e3 * v.median:9.2f} [{1e3 * v.q1:.2f}, {1e3 * v.q3:.2f}]".ljust(30) for v in t.values())
    ratios = {name: round(v.median / t["fast"].median, 2) for name, v in t.items() if name != "fast"}
    print(f"{n:5d} {dim:5d} {k:4d} {cells} {'  '.join(f'{r:5.1f}x' for r in ratios.values())}", flush=True)
    return ratios


def main() -> int:
    """Check, time, print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and a smaller exactness check")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    if os.environ.get("OMP_NUM_THREADS") != "1" or os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        # BLAS reads these once, when numpy is imported, so only a fresh process can obey them.
        os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
        os.execv(sys.executable, [sys.executable, "-m", "bench.selection", *sys.argv[1:]])

    print(warm_up())
    print(f"one thread; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; lambda 0.5")
    # A quick run checks one small size, in full; the whole one also every size at the K that is timed.
    sizes = [(96, 96)] if args.quick else [(400, 400), *((n, n // 4) for n in SIZES)]
    exact = all([check_exact(n, DIMS[0], k) for n, k in sizes])
    exact &= check_greedy(*((96, 64, 96) if args.quick else (400, DIMS[0], 400)))
    print(f"same order as the definition in every case: {'yes' if exact else 'NO'}")
    print("milliseconds, median [quartiles]: fast, reference, float32 loop, gemm loop; then their ratios to fast")
    rows = {(n, dim): time_size(n, dim, 2 if args.quick else args.repeats) for dim in DIMS for n in SIZES}
    result = {"exact": exact, "speedup": {str(n): rows[n, dim]["reference"] for n, dim in SIZES.items()}}
    result["dim"] = {str(n): dim for n, dim in SIZES.items()}
    for name in ("reference", "float32 loop", "gemm loop"):
        result[f"speedup_over_{name.replace(' ', '_')}"] = {str(dim): {str(n): rows[n, dim][name] for n in SIZES} for dim in DIMS}
    print(f"\n{greedy_numba.available()[1]} One image, a batch of {BATCH}, and the definition:")
    # The definition of SCOPE takes half a minute at the largest size.
    greedy = {n: dim for n, dim in SIZES.items() if not args.quick or n == min(SIZES)}
    result["greedy"] = {str(n): time_greedy(n, dim, min(args.repeats, 1 if args.quick else 3)) for n, dim in greedy.items()}
    exact &= all(row["exact"] for rows in result["greedy"].values() for row in rows.values())
    result["exact"] = exact
    print(json.dumps(result))
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
