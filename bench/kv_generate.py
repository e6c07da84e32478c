"""Tokens per second of whole decode steps of the embedded model: ``python -m bench.kv_generate [--contexts 2048 4096 8192]``.

default: transformers' DynamicCache. fp8, quanto_4, hqq_4: transformers' quantised caches, the last two only where their
packages are installed. exact, paper, certified: TrimLens's cache under ``kvquant.attention.reading``, error 0.02 certified.
certified_late: the same, exact up to 3,072 tokens of context, where choosing bits costs more than it saves.
Text (bench.texts) is prefilled once per context with the default cache; all other caches store the same K and V, so the
prefill is no part of the time. Caches take turns, one decode step each, batch 1; every step appends its token, so that the
context grows by one per round for all alike. The model is timed as the page runs it (float32 on a CPU).

Ends with one JSON line, {context: {cache: tokens per second}}, from medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable

import torch
from transformers import Cache, DynamicCache, QuantizedCache

from bench.kv_quality import open_model
from bench.texts import windows
from bench.timing import Timing, measure, positive
from kvquant.attention import reading
from kvquant.cache import KVCache, Setting
from kvquant.kernels import warm_up
from kvquant.modes import Certified, Exact, Paper
from vlm import device
from vlm.model import Vlm

PREFILL = 512  # tokens at a time, so that 8192 of them need no 8192 x 8192 scores
# No traces: nobody looks at them here.
OURS = {
    "exact": Setting(Exact(), traced=0),
    "paper": Setting(Paper(), traced=0),
    "certified": Setting(Certified(0.02), traced=0),
    "certified_late": Setting(Certified(0.02), traced=0, start=3072),
}


def caches(config) -> dict[str, Callable[[], Cache]]:
    """Makers of the empty caches that this machine can compare."""
    found = {"fp8": lambda: QuantizedCache("fp8", config)}
    for backend, package in (("quanto", "optimum.quanto"), ("hqq", "hqq")):
        if _installed(package):
            found[f"{backend}_4"] = lambda backend=backend: QuantizedCache(backend, config, nbits=4)
    found |= {name: lambda setting=setting: KVCache(config, setting) for name, setting in OURS.items()}
    return found


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # the package's parent is missing
        return False


@torch.inference_mode()
def filled(vlm: Vlm, context: int) -> dict[str, Cache]:
    """Every cache with the same ``context`` tokens."""
    ((_, ids),) = windows(vlm.prompter.encode, context, 1)
    default, tokens = DynamicCache(), torch.tensor([ids], device=vlm.placement.device)
    for part in tokens.split(PREFILL, dim=1):
        vlm.model(part, past_key_values=default, logits_to_keep=1)
    every: dict[str, Cache] = {"default": default}
    for name, make in caches(vlm.model.config).items():
        cache = every[name] = make()
        for index, layer in enumerate(default.layers):
            cache.update(layer.keys, layer.values, index)
    return every


def decode_times(vlm: Vlm, context: int, repeats: int, warmup: int) -> dict[str, Timing]:
    """Seconds of one decode step with every cache, interleaved."""
    token = torch.tensor([[vlm.prompter.encode(" the")[0]]], device=vlm.placement.device)

    def step(cache: Cache) -> None:
        vlm.model(token, past_key_values=cache)
        device.synchronise(vlm.placement.device)

    every = filled(vlm, context)
    with torch.inference_mode(), reading(vlm.model):
        return measure({name: lambda cache=cache: step(cache) for name, cache in every.items()}, repeats, warmup)


def main(argv: list[str] | None = None) -> int:
    """Measures, prints a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=positive, nargs="+", default=[2048, 4096, 8192], help="tokens in the cache")
    parser.add_argument("--repeats", type=positive, default=15)
    parser.add_argument("--warmup", type=int, default=3)
    arguments = parser.parse_args(argv)
    vlm = open_model()
    print(warm_up())
    print(f"{vlm.name}, {vlm.placement.reason}; medians (quartiles) of {arguments.repeats} interleaved decode steps")
    record: dict[str, dict[str, float]] = {}
    for context in arguments.contexts:
        times = decode_times(vlm, context, arguments.repeats, arguments.warmup)
        record[str(context)] = {name: round(1 / t.median, 2) for name, t in times.items()}
        print(f"{context} tokens of context")
        for name, t in times.items():
            print(f"    {name:14} {t.median * 1e3:8.1f} ms ({t.q1 * 1e3:.1f} - {t.q3 * 1e3:.1f}), {1 / t.median:6.2f} tokens/s")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
