"""A decode step over fixed-point planes: from a store to the output and its trace."""

from __future__ import annotations

import numpy as np
import torch

from kvquant.kernels.cpu.certified import decode
from kvquant.kernels.cpu.scratch import scratch
from kvquant.kernels.cpu.state import Result, request_of, result_of, unit_of, views_of, wave_of
from kvquant.modes import Certified, Exact, Trace
from kvquant.store import Store


def answer(
    q: torch.Tensor, store: Store, mode: Exact | Certified, mask: torch.Tensor | None, scale: float, threads: int, traced: bool
) -> tuple[torch.Tensor, Trace | None] | None:
    """q: [B, Hq, D]; mask: bool [B, L]. None where a query is not finite, or too loud for coarse scores."""
    batch, heads, length, dim = store.shape
    n, rows, group = store.planed, batch * heads, q.shape[1] // heads
    planes, norms = views_of(store)
    ask, result = request_of(q, store, mask, scale), result_of(store, group, traced)
    target, share = (mode.error / (1 + mode.error), mode.key_share) if isinstance(mode, Certified) else (0.0, 0.0)
    with scratch(wave_of, rows, group, n, length - n, dim) as wave:
        rounds = decode(planes, norms, ask, wave, result, unit_of(n), target, share, threads)
    if not rounds:
        return None
    return torch.from_numpy(result.out).view(batch, -1, dim), _trace(store, result, rounds, target) if traced else None


def _trace(store: Store, result: Result, rounds: int, target: float) -> Trace:
    """From what the kernels wrote. Every byte counts once, however often it was looked at."""
    (batch, heads, length, dim), n = store.shape, store.planed
    rows = batch * heads
    fine, read, low = result.counts.T
    if not target:
        result.key_bits[:, :n] = result.value_bits[:, :n] = 16
        fine = read = low = 0 * fine + n
    digits = dim * (rows * n + int((fine + read + low).sum()))
    size = store.tail["k"].element_size()
    touched = 2 * rows * dim * size * (length - n) + digits + 8 * rows * n + store.planes.constants_read
    bits = ((8 * n + 8 * fine) + 8 * size * (length - n)) / length
    channel = torch.from_numpy(bits.astype(np.float32)).view(batch, heads, 1)
    norm, bound, bound_max = (torch.from_numpy(x).view(batch, -1) for x in (result.norm, result.bound, result.bound_max))
    key_bits, value_bits = (torch.from_numpy(x).view(batch, heads, length) for x in (result.key_bits, result.value_bits))
    channels = channel.expand(-1, -1, dim)
    return Trace(key_bits, value_bits, channels, touched, store.bytes_whole, norm, bound, bound_max, rounds)
