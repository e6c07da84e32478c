"""Fixed planes through Triton: which kernels run in which order, and the trace of what they have read."""

from __future__ import annotations

import math

import torch
import triton

from kvquant.fixed_planes import ROUNDING
from kvquant.kernels import triton_columns as col
from kvquant.kernels import triton_step
from kvquant.kernels.triton_merge import merge
from kvquant.kernels.triton_plan import plan
from kvquant.kernels.triton_scores import open_step, score_rows
from kvquant.kernels.triton_step import Step
from kvquant.kernels.triton_values import read_rows
from kvquant.modes import Certified, Exact, Meter, Trace
from kvquant.store import Store

# Rows of the plan's sample, held in registers all at once.
SAMPLE = 1024
# What each round may use of the error allowed; nothing in the last, which reads everything. The first knows the output's norm
# by an estimate only. On text through SmolLM2-135M, 0.7 instead of 0.9 cost 0.5 bits (K + V) and spared most second rounds.
AIMS = (0.7, 0.7, 0.0)


def read_fixed(
    q: torch.Tensor, store: Store, mode: Exact | Certified, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, Trace]:
    """q: float32 [B, H, g, D]; mask: bool [B, L] or None. Returns out float32 [B, H, g, D] and the trace.

    Certified: the scores of K's high plane first, then rounds of plan, read and merge until every head's bound is met. Asking
    whether it is waits for the device once per round, and so does the trace. To capture a step in a graph, launch all rounds
    (where nothing is short they return at once) and leave the trace for later.
    """
    step = FixedStep(q, store, mask, scale)
    step.launch(open_step, (step.pairs,), BLOCK=triton_step.TAIL_BLOCK)
    if isinstance(mode, Exact):
        step.launch(read_rows, step.grid, FUSED=True, v_read=step.names["probed"])
        step.launch(merge, step.per_head, target=0.0)
        return step.out, step.trace([], [])
    target = mode.error / (1 + mode.error)  # as ||o|| >= ||o'|| - bound, this much of ||o'|| is at most mode.error of ||o||
    step.launch(score_rows, step.grid)
    reads, passes = [], []
    for aim in AIMS:
        short = step.short()
        if not bool(short.any()):
            break
        reads.append(torch.zeros_like(step.names["probed"]))
        passes.append(short)
        step.launch(plan, step.per_head, FIRST=len(reads) == 1, ALL=aim == 0, allowance=aim * target, key_share=mode.key_share)
        step.launch(read_rows, step.grid, FUSED=False, v_read=reads[-1], BLOCK=triton_step.READ_BLOCK)
        step.launch(merge, step.per_head, target=target)
    return step.out, step.trace(reads, passes)


class FixedStep(Step):
    """A step over fixed planes, with the constants of its bounds."""

    def __init__(self, q: torch.Tensor, store: Store, mask: torch.Tensor | None, scale: float) -> None:
        super().__init__(q, store, mask, scale)
        planes, n, group, gp = store.planes, store.planed, q.shape[2], self.names["GP"]
        self.constants = {
            "k_spread": planes.k_spread,
            "k_centre": planes.k_centre,
            "k_noise": planes.k_noise.norm,
            "v_centre": planes.v_centre,
            "v_spread": planes.v_spread.norm,
            "v_columns": planes.v_spread.columns,
            "v_noise": planes.v_noise.norm,
            "v_noise_columns": planes.v_noise.columns,
            "v_radius": planes.v_radius,
        }
        results, marks = q.new_zeros(self.pairs, gp, 8), q.new_zeros(2, self.pairs, n, dtype=torch.uint8)
        results[:, :group, col.SHORT.value] = 1
        self.names |= {name: x.contiguous() for name, x in self.constants.items()}
        for name, growing in (("k", planes.keys), ("v", planes.values)):
            self.names |= {f"{name}_{part}": growing[part] for part in ("high", "low", "step")}
        self.names |= {"room": planes.keys["step"].stride(1), "plans": q.new_zeros(self.pairs, gp, 4), "results": results}
        self.names |= {"k_fine": marks[0], "probed": marks[1]}
        # Twice the slack of FixedPlanes.noise: see HIGH_ERROR in triton_parts.
        self.names |= {"slack": 2 * ROUNDING * math.sqrt(n * q.shape[-1]), "slack_columns": 2 * ROUNDING * math.sqrt(n)}
        self.names |= {"stride": triton.cdiv(n, SAMPLE), "SAMPLE": min(SAMPLE, triton.next_power_of_2(n))}

    def short(self) -> torch.Tensor:
        """Bool [pairs]: some head of the group has not met its bound."""
        return self.names["results"][..., col.SHORT.value].any(-1)

    def trace(self, reads: list[torch.Tensor], passes: list[torch.Tensor]) -> Trace:
        """reads: uint8 [pairs, n] per round, the planes of V's rows that were read; passes: bool [pairs], who took part.

        No rounds: all was read, once. A row counts in every round that reads it; the scores, which are no part of the cache, not.
        """
        planes, n, (batch, heads, group, dim) = self.store.planes, self.store.planed, self.out.shape
        meter = Meter()
        meter.bytes = self.store.tail.bytes_used + sum(x.nbytes for x in self.constants.values())
        if not reads:
            meter.bytes += planes.keys.bytes_used + planes.values.bytes_used
            key_bits = value_bits = self.out.new_full((batch, heads, n), 16.0)
        else:
            fine, planes_read = self.names["k_fine"], torch.stack([self.names["probed"], *reads])
            meter.bytes += dim * (self.pairs * n + int(fine.sum()) + int(planes_read.sum()))
            # Steps: K's with the scores, both with every plan's sample (of all pairs) and every pass over the rows.
            sampled = len(reads) * self.pairs * triton.cdiv(n, self.names["stride"])
            meter.bytes += 4 * (self.pairs * n + 2 * sampled + 2 * n * int(torch.stack(passes).sum()))
            key_bits = (8.0 + 8 * fine).view(batch, heads, n)
            value_bits = 8.0 * planes_read.amax(0).view(batch, heads, n)
        results = self.names["results"][:, :group].view(batch, heads, group, -1)
        bound, bound_max = results[..., col.BOUND.value], results[..., col.BOUND_MAX.value]
        channel_bits = key_bits.mean(-1, keepdim=True).expand(-1, -1, dim)
        rounds = max(1, len(reads))
        return Trace.of(self.store, meter, self.out, key_bits, value_bits, channel_bits, bound, bound_max, rounds)
