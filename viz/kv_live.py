"""Errors measured on the answer that is on the page: of the next token's probabilities, and of single attention outputs.

The answer's own tokens are forced, one decode step at a time, through caches that read the same K and V differently; a prompt's
prefill reads nothing from planes and would show no error. One answer is an illustration, not a benchmark: bench.kv_quality
does the same with thousands of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig

from bench.kv_rounding import Fp8, Int8, Truncated, rounded_cache
from kvquant.alignment import STEPS, THREE_WIDTHS, fold
from kvquant.attention import reading
from kvquant.cache import KVCache, Setting
from kvquant.kernels import reference
from kvquant.modes import Certified, Exact, Mode, Paper
from kvquant.store import Store
from viz.kv_capture import Captured
from viz.kv_run import Run
from vlm.model import Vlm

TOLERANCES = (0.005, 0.02, 0.1)
# Small enough that every plane is read: what moves the probabilities then is rounding alone.
NO_ERROR = 1e-9
# Forced tokens of the answer: the measurement must end while somebody waits for it.
MOST_TOKENS = 8
PAPER_STEPS = {"thresholds 4, 8 and 11": STEPS, "thresholds 4 and 8, nothing unread": THREE_WIDTHS}
ROUNDINGS = {
    "uniform 8 bit": lambda: Truncated(8),
    "uniform 12 bit": lambda: Truncated(12),
    "uniform 13 bit": lambda: Truncated(13),
    "fp8": Fp8,
    "int8": Int8,
}


@dataclass(frozen=True)
class Reader:
    """A way of reading to be compared: its family, its name, its empty cache.

    family: "certified", "paper", "exact" (the 16 bits through sdpa, as the default cache), "uniform", or "rounding": every plane is
    read, so that only the rounding of storage and of the model's own type is left.
    """

    family: str
    name: str
    cache: Callable[[PreTrainedConfig], Cache]


@dataclass(frozen=True)
class Loss:
    """What a way of reading costs: bits read per number, with scales, steps, constants and whole tokens; means over ``tokens``.

    kld: KL divergence of the next token's distribution, in nats; top1: how often its likeliest token is the same.
    """

    family: str
    name: str
    tokens: int
    bits: float
    kld: float
    top1: float


@dataclass
class Error:
    """Sums over forced tokens, of one reader: equal likeliest tokens, KL divergence, bytes of K and V, how many numbers."""

    reader: Reader
    tokens: int = 0
    agree: int = 0
    kld: float = 0.0
    bytes: int = 0
    numbers: int = 0

    @property
    def loss(self) -> Loss:
        """The means, of at least one token."""
        bits = 8 * self.bytes / self.numbers
        return Loss(self.reader.family, self.reader.name, self.tokens, bits, self.kld / self.tokens, self.agree / self.tokens)


@dataclass(frozen=True)
class Point:
    """One query head at one decode step: proven and measured ||o' - o|| / ||o||; layer, head and step from 0."""

    layer: int
    head: int
    step: int
    bound: float
    error: float


def readers(window: int) -> list[Reader]:
    """All that is compared; every cache keeps the same ``window`` of newest tokens whole."""

    def ours(mode: Mode, halves: bool = False) -> Callable:
        return lambda config: KVCache(config, Setting(mode, halves, window, traced=1))

    def uniform(make: Callable) -> Callable:
        return lambda config: rounded_cache(config, make, window)

    found = [Reader("exact", "all 16 bits", ours(Exact(), halves=True))]
    found += [Reader("rounding", "every plane read, attention in float32", ours(Certified(NO_ERROR)))]
    found += [Reader("paper", name, ours(Paper(steps))) for name, steps in PAPER_STEPS.items()]
    found += [Reader("certified", f"error {tolerance:g}", ours(Certified(tolerance))) for tolerance in TOLERANCES]
    return found + [Reader("uniform", name, uniform(make)) for name, make in ROUNDINGS.items()]


def force(vlm: Vlm, run: Run) -> Iterator[tuple[float, list[Loss]]]:
    """Yields (share done, losses so far) after every decode step of the answer's first tokens, against the default cache.

    It also yields within a step, without losses, so that another visitor's answer waits for one cache's step at most.
    """
    prompt, ids = run.prompt, run.answer.token_ids[: MOST_TOKENS + 1]
    base, compared = DynamicCache(), readers(run.setting.window)
    with torch.inference_mode(), vlm.lock:
        vlm.model(**prompt.kwargs(), past_key_values=base, logits_to_keep=1)
    caches = [reader.cache(vlm.model.config) for reader in compared]
    for cache in caches:
        for index, layer in enumerate(base.layers):
            cache.update(layer.keys, layer.values, index)
    errors = [Error(reader) for reader in compared]
    for step, token in enumerate(ids[:-1]):
        place = prompt.position_ids[..., -1:] + 1 + step
        expected = _log_p(vlm, token, place, base)
        keys = base.layers[0].keys
        numbers = 2 * keys.numel() * len(base.layers)
        for done, (error, cache) in enumerate(zip(errors, caches, strict=True)):
            yield (step + done / len(caches)) / (len(ids) - 1), []
            found = _log_p(vlm, token, place, cache)
            error.tokens += 1
            error.agree += int(found.argmax() == expected.argmax())
            error.kld += float((expected.exp() * (expected - found)).sum())
            error.bytes += bytes_read(cache)
            error.numbers += numbers
        yield (step + 1) / (len(ids) - 1), [error.loss for error in errors]


@torch.inference_mode()
def _log_p(vlm: Vlm, token: int, place: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Log-probabilities float64 [V] of the token after ``token``: float32 would drown what is to be measured."""
    with vlm.lock, reading(vlm.model):
        ids = torch.tensor([[token]], device=place.device)
        return vlm.model(ids, position_ids=place, past_key_values=cache).logits[0, -1].double().log_softmax(-1)


def bytes_read(cache: Cache) -> int:
    """Bytes of K and V that the newest decode step has read from one of the caches of :func:`readers`."""
    if isinstance(cache, KVCache):
        return sum(trace.bytes_read for trace in cache.traces[-1])
    return sum(layer.read()[0] for layer in cache.layers)


def bound_steps(steps: int, most: int = 3) -> list[int]:
    """Up to ``most`` decode steps, the first and the last among them."""
    return sorted({round(index * (steps - 1) / max(1, most - 1)) for index in range(most)})


def beneath(captured: Captured, setting: Setting) -> Iterator[tuple[float, list[Point]]]:
    """Yields (share done, points so far) layer by layer: attention of real q, K, V as ``setting`` reads, against all bits.

    Both see the same halves and compute in float64, so that what is measured is the reading alone, and what is proven covers it:
    float32 rounds by 1e-11 to 1e-7 of the output, which is more than the smallest bounds, and in no bound (see ``Trace``).
    """
    steps, points = bound_steps(captured.steps), []
    layers = len(captured.q)
    for layer in range(layers):
        for step in steps:
            q, k, v = captured.at(layer, step)
            store = Store(setting.format, setting.window)
            # As in an answer: the prompt first, which decides centres and spreads.
            store.append(k[:, :, : captured.prompt], v[:, :, : captured.prompt])
            for token in range(captured.prompt, k.shape[2]):
                store.append(k[:, :, token : token + 1], v[:, :, token : token + 1])
            out, trace = reference.decode_attention(q, store, setting.mode, scale=captured.scale, dtype=torch.float64)
            true = exact_output(q, k, v, captured.scale)
            size = true.norm(dim=-1)
            measured = (out - true).norm(dim=-1) / size
            proven = trace.bound / size
            points += [Point(layer, h, step, float(proven[0, h]), float(measured[0, h])) for h in range(q.shape[1])]
        yield (layer + 1) / layers, points


def exact_output(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention in float64, [1, Hq, D], of q [1, Hq, D] over k, v [1, Hkv, L, D]."""
    scores = scale * fold(q.double(), k.shape[1]) @ k.double().transpose(-1, -2)
    return (scores.softmax(-1) @ v.double()).flatten(1, 2)


def proven(points: list[Point]) -> tuple[int, int]:
    """(points whose error is beneath their bound, points with a bound); where every token is whole there is nothing to prove."""
    bounded = [point for point in points if 0 < point.bound < math.inf]
    return sum(point.error <= point.bound for point in bounded), len(bounded)
