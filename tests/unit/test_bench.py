"""The benches end with one JSON line whose numbers follow from what was measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import prefill
from vlm.model import Answer, Timings

ROOT = Path(__file__).resolve().parents[2]


def run(prune: float, prompt: int, seconds: float) -> Answer:
    """One measured first token."""
    kept = prefill.keep_count(256, prune)
    timings = Timings(vision=0.1, scoring=0.001 if prune else 0, selection=0.001 if prune else 0, prefill=seconds)
    return Answer("idpruner", 256, kept, prompt, timings=timings)


def test_prefill_summary_follows_from_the_medians():
    runs = {0.0: [run(0.0, 280, 0.56)] * 3, 0.75: [run(0.75, 88, 0.2)] * 3, 0.9: [run(0.9, 50, 0.14)] * 3}
    out = prefill.summary(runs)
    assert out["prefill_speedup"] == {"0.75": 2.8, "0.9": 4.0}
    assert out["ttft_speedup"]["0.75"] == round(0.66 / 0.302, 3)
    assert out["ideal_prefill_speedup"]["0.9"] == 5.6
    # 0.56 -> 0.14 saved 0.42 of the 0.46 that a proportional prefill would save.
    assert out["share_of_ideal_gain"]["0.9"] == round(0.42 / 0.46, 3)
    assert out["kept"] == {"0.75": 64, "0.9": 26}


def test_selection_bench_is_exact_and_ends_with_json():
    done = subprocess.run(
        [sys.executable, "-m", "bench.selection", "--quick"], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.strip().splitlines()[-1])
    assert record["exact"] is True
    assert set(record["speedup"]) == {"256", "1024", "2691"} and all(value > 1 for value in record["speedup"].values())
