"""Half planes through Triton: all bits, or the widths of AlignedKV (arXiv 2409.16546)."""

from __future__ import annotations

import torch

from kvquant.alignment import LEAST_HALF, exponent, wasted_in_scores, widths
from kvquant.kernels import triton_columns as col
from kvquant.kernels import triton_step
from kvquant.kernels.reference_half import at_least_8, half_bound, likeliest
from kvquant.kernels.triton_half_rows import score_halves, sum_halves
from kvquant.kernels.triton_scores import open_step
from kvquant.kernels.triton_step import Step
from kvquant.modes import Exact, Meter, Paper, Trace
from kvquant.planes import join_half
from kvquant.store import Store

# More wasted bits than there can be: everything is read.
ALL = (1 << 24, 1 << 24, 1 << 24)


def read_half(
    q: torch.Tensor, store: Store, mode: Exact | Paper, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, Trace]:
    """q: float32 [B, H, g, D]; mask: bool [B, L] or None. Returns out float32 [B, H, g, D] and the trace.

    Scores and values are kernels; the widths between them, which take 32 rows per query head, are plain torch.
    """
    planes, (batch, heads, group, dim) = store.planes, q.shape
    steps = mode.steps if isinstance(mode, Paper) else ALL
    k_bits = widths(wasted_in_scores(q.flatten(1, 2), planes.k_peak), steps)
    step = HalfStep(q, store, mask, scale, k_bits)
    step.launch(open_step, (step.pairs,), BLOCK=triton_step.TAIL_BLOCK)
    step.launch(score_halves, step.grid)
    total = torch.logsumexp(step.names["top"] + step.names["sums"][..., col.MASS.value].log(), dim=1)  # [pairs, GP]
    p = (step.names["scores"] - total[:, :group, None]).exp()
    room = torch.zeros_like(total, dtype=torch.int32)
    v_bits = step.empty(store.planed, dtype=torch.uint8).zero_()
    if isinstance(mode, Paper):
        best, token = likeliest(p)
        room[:, :group] = step.room(best, token)
        v_bits = at_least_8(v_bits[None], token.flatten(1)[None])[0]
    asked = {"steps_high": steps[2], "steps_middle": steps[1], "steps_low": steps[0]}
    step.launch(sum_halves, step.grid, total=total, room=room, v_bits=v_bits, **asked)
    acc = step.names["acc"]
    whole = acc[:, 0] * (step.names["top"][:, 0] - total).exp()[..., None]
    masses = torch.stack([(p * (v_bits == bits)[:, None]).sum(-1).view(batch, heads, group) for bits in (12, 8, 0)], dim=-1)
    out = (whole + acc[:, 1:].sum(1))[:, :group, :dim].reshape(q.shape) + masses[..., 2:] * planes.v_mean[:, :, None]
    error = half_bound(q, store, k_bits, masses, scale)
    n, v_bits = store.planed, v_bits.view(batch, heads, -1)
    meter = Meter()
    meter.bytes = store.tail.bytes_used + planes.constants_read
    meter.bytes += (n * int(k_bits.sum()) + dim * int(v_bits.sum(dtype=torch.int64))) // 8
    key_bits = k_bits.float().mean(-1, keepdim=True).expand(-1, -1, n)
    return out, Trace.of(store, meter, out, key_bits, v_bits, k_bits.float(), error.norm(dim=-1), error.amax(-1))


class HalfStep(Step):
    """A step over half planes; k_bits: int32 [B, H, D]."""

    def __init__(self, q: torch.Tensor, store: Store, mask: torch.Tensor | None, scale: float, k_bits: torch.Tensor) -> None:
        super().__init__(q, store, mask, scale)
        planes, dim = store.planes, q.shape[-1]
        # Nothing is centred or spread here.
        zeros, ones = torch.zeros_like(planes.k_peak), torch.ones_like(planes.k_peak)
        self.names |= {"k_spread": ones, "k_centre": zeros, "k_noise": zeros, "v_centre": zeros, "slack": 0.0}
        for name, growing in (("k", planes.keys), ("v", planes.values)):
            self.names |= {f"{name}_{part}": growing[part] for part in ("high", "middle", "low")}
        rooms = {"k_room": planes.keys["high"].stride(1) // (dim * 64), "v_room": planes.values["high"].stride(1) // dim}
        self.names |= rooms | {"k_bits": k_bits.contiguous()}

    def room(self, best: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Exponent of the output's estimate less that of the largest value, the least over the channels: int32 [pairs, g].

        best, token: [pairs, g, CLASSES], the likeliest tokens, as in ``reference_half._estimate``.
        """
        pair = torch.arange(self.pairs, device=best.device)[:, None, None]
        picked = join_half(self.names["v_high"].flatten(0, 1)[pair, token], None, None, 8).float()
        estimate = (best[..., None] * picked.abs()).sum(-2)
        peak = exponent(self.store.planes.v_peak.flatten(0, 1)).clamp(min=LEAST_HALF)
        return (exponent(estimate) - peak[:, None]).amin(-1)
