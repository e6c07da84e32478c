"""A decode step over half planes: from a store to the output and its trace."""

from __future__ import annotations

import torch

from kvquant.alignment import fold
from kvquant.kernels.cpu.half_passes import decode
from kvquant.kernels.cpu.half_state import Request, Result, planes_of, request_of, result_of, wave_of
from kvquant.kernels.cpu.scratch import scratch
from kvquant.kernels.cpu.state import unit_of
from kvquant.kernels.reference_half import half_bound
from kvquant.modes import Exact, Meter, Paper, Trace
from kvquant.store import Store


def answer(
    q: torch.Tensor, store: Store, mode: Exact | Paper, mask: torch.Tensor | None, scale: float, threads: int, traced: bool
) -> tuple[torch.Tensor, Trace | None] | None:
    """q: [B, Hq, D]; mask: bool [B, L]. None where a query is not finite."""
    if not bool(q.isfinite().all()):
        return None
    batch, heads, length, dim = store.shape
    n, rows, group = store.planed, batch * heads, q.shape[1] // heads
    ask, result = request_of(q, store, mask, scale, mode), result_of(store, group, traced)
    with scratch(wave_of, rows, group, n, length - n, dim) as wave:
        decode(planes_of(store), ask, wave, result, unit_of(n), threads)
    return torch.from_numpy(result.out).view(batch, -1, dim), _trace(q, store, ask, result, scale) if traced else None


def _trace(q: torch.Tensor, store: Store, ask: Request, result: Result, scale: float) -> Trace:
    """From what the kernels wrote, in the reference's terms."""
    (batch, heads, _, dim), n, planes = store.shape, store.planed, store.planes
    k_bits = torch.from_numpy(ask.k_bits).view(batch, heads, dim)
    by_high, by_middle, by_low = (dim * int(rows) for rows in result.counts.sum(0))
    meter = Meter()
    meter.bytes = n * int(k_bits.sum()) // 8 + by_high + (by_middle + by_low) // 2
    meter.bytes += planes.constants_read + store.tail.bytes_used
    masses = torch.from_numpy(result.mass).float().view(batch, heads, -1, 3)
    error = half_bound(fold(q.float(), heads), store, k_bits, masses, scale)
    out = torch.from_numpy(result.out).view(batch, heads, -1, dim)
    return Trace.of(
        store,
        meter,
        out,
        key_bits=k_bits.float().mean(-1, keepdim=True).expand(-1, -1, n),
        value_bits=torch.from_numpy(result.value_bits).view(batch, heads, -1)[..., :n],
        channel_bits=k_bits.float(),
        bound=error.norm(dim=-1),
        bound_max=error.amax(-1),
    )
