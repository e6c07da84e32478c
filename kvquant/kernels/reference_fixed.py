"""The reference for fixed-point planes: all bits, or the fewest rows that a certified error needs.

Certified reading, per KV head and its group of query heads:
  1. K's high plane, whole: scores, each with its interval. V's high plane where p is not far below the average, the other
     rows taken as V's centre: a first output, and with its norm the error allowed.
  2. K's low rows, in the order of ``bounds.log_weight``, until the score part of the bound fits its share.
  3. V's rows, high and low plane, in the order of their addends' errors (p times the spread of V; p times the step times
     the noise: precision alignment with a row that is not read as its coarsest width), until the value part fits the rest.
  4. The bound is computed again from what was read. Heads that miss go round again with less room; in the last round, what
     is left of them is read. A row is read when any query head of the group asks for it.
Rows are asked for by threshold, lowered half an octave at a time, so that a kernel can do the same with a histogram.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from kvquant.bounds import fixed_score_error, log_weight, score_error, value_error
from kvquant.modes import Exact, Meter, Mode, Trace
from kvquant.planes import BASE, HIGH_ERROR, LOW_ERROR
from kvquant.store import Store

HALF_OCTAVE = 0.5 * math.log(2.0)
# 32 octaves below the largest addend all addends together are below its last float32 bit.
LEVELS = 64
# What each round may use of the error allowed; nothing in the last, which reads everything.
AIMS = (0.97, 0.7, 0.0)


def read_fixed(q: torch.Tensor, store: Store, mode: Mode, visible: torch.Tensor, scale: float) -> tuple[torch.Tensor, Trace]:
    """q: [B, H, g, D]; visible: bool [B, 1, 1, L]; mode: Exact or Certified. Returns out [B, H, g, D] and the trace."""
    reading = Reading(q, store, visible, scale)
    everything = torch.ones_like(reading.k_fine)
    if isinstance(mode, Exact):
        reading.refine_keys(everything)
        reading.refine_values(everything, everything)
        return reading.result(store, *reading.bounds(), rounds=1)
    target = mode.error / (1 + mode.error)  # as ||o|| >= ||o'|| - bound, this much of ||o'|| is at most mode.error of ||o||
    probable = (4 * reading.log_p().exp() * visible.sum(-1, keepdim=True) >= 1).any(2)
    reading.refine_values(probable, torch.zeros_like(everything))
    short = torch.ones_like(q[..., 0], dtype=torch.bool)
    for rounds, aim in enumerate(AIMS, start=1):  # noqa: B007
        if aim:
            reading.refine_keys(_keys_needed(reading, short, aim * target, mode.key_share))
            reading.refine_values(*_values_needed(reading, short, aim * target))
        else:
            rest = everything & short.any(-1, keepdim=True)
            reading.refine_keys(rest)
            reading.refine_values(rest, rest)
        bound, bound_max = reading.bounds()
        short = bound > target * reading.output().norm(dim=-1)
        if not bool(short.any()):
            break
    return reading.result(store, bound, bound_max, rounds)


class Reading:
    """What has been read so far: scores [B, H, g, L], values [B, H, n, D], and which rows of the n tokens in planes."""

    def __init__(self, q: torch.Tensor, store: Store, visible: torch.Tensor, scale: float) -> None:
        self.meter, self.planes, self.n = Meter(), store.planes, store.planed
        self.scale, self.corner = scale, math.sqrt(q.shape[-1])
        read, planes, dtype = self.meter.read, store.planes, q.dtype
        self.q = q * read(planes.k_spread).to(dtype)
        self.centre = read(planes.v_centre).to(dtype)
        self.k_step = read(planes.keys["step"]).to(dtype)[:, :, None]
        self.v_step = read(planes.values["step"]).to(dtype)[:, :, None]
        self.k_noise = scale * self.q.norm(dim=-1) * read(planes.noise(planes.k_noise)).to(dtype)
        self.v_noise, self.v_columns = (read(planes.noise(planes.v_noise, c)).to(dtype)[:, :, None] for c in (False, True))
        self.spread, self.columns = (read(x).to(dtype)[:, :, None] for x in (planes.v_spread.norm, planes.v_spread.columns))
        self.radius = read(planes.v_radius).to(dtype)[:, :, None]
        high = read(planes.keys["high"]).to(dtype)
        scores = scale * (self.q @ high.transpose(-1, -2) * self.k_step + q @ read(planes.k_centre).to(dtype).transpose(-1, -2))
        whole = scale * q @ read(store.tail["k"]).to(dtype).transpose(-1, -2)
        self.scores = torch.cat([scores, whole], dim=-1).masked_fill(~visible, -torch.inf)
        self.tail = read(store.tail["v"]).to(dtype)
        self.values = self.centre.repeat(1, 1, self.n, 1)
        self.k_fine = torch.zeros_like(self.k_step[:, :, 0], dtype=torch.bool)
        self.v_read, self.v_fine = self.k_fine.clone(), self.k_fine.clone()

    def refine_keys(self, chosen: torch.Tensor) -> None:
        """Reads the low plane of K's rows ``chosen``, bool [B, H, n], as far as it has not been read."""
        new = chosen & ~self.k_fine
        low = self.meter.rows(self.planes.keys["low"], new).to(self.q.dtype)
        b, h, i = new.nonzero(as_tuple=True)
        digits = (self.q[b, h] @ low[..., None])[..., 0] / BASE
        # An infinite score (a masked token) stays infinite.
        self.scores[b, h, :, i] += self.scale * self.k_step[b, h, :, i] * digits
        self.k_fine |= new

    def refine_values(self, chosen: torch.Tensor, fine: torch.Tensor) -> None:
        """Reads V's high rows ``chosen | fine`` and low rows ``fine``, bool [B, H, n], as far as they have not been read."""
        dtype, step = self.q.dtype, self.v_step[:, :, 0, :, None]
        new = (chosen | fine) & ~self.v_read
        self.values[new] = self.meter.rows(self.planes.values["high"], new).to(dtype) * step[new]
        self.v_read |= new
        new = fine & ~self.v_fine
        self.values[new] += self.meter.rows(self.planes.values["low"], new).to(dtype) / BASE * step[new]
        self.v_fine |= new

    def log_p(self) -> torch.Tensor:
        """Log-probabilities of the tokens in planes, [B, H, g, n]."""
        return self.scores.log_softmax(-1)[..., : self.n]

    def output(self) -> torch.Tensor:
        """[B, H, g, D]."""
        return self.scores.softmax(-1) @ torch.cat([self.values, self.tail], dim=2)

    def delta(self, fine: torch.Tensor) -> torch.Tensor:
        """Half-widths of the score intervals if ``fine``, bool [B, H, n], are K's rows read whole: [B, H, g, n]."""
        return fixed_score_error(self.q, self.k_step, fine[:, :, None], self.scale)

    def reach(self, value: torch.Tensor) -> torch.Tensor:
        """At least ||v_i - b||, [B, H, g, n], if the value part of ``output()`` is at most ``value`` [B, H, g, 1]."""
        error = torch.where(self.v_fine, LOW_ERROR, HIGH_ERROR)[:, :, None] * self.corner * self.v_step
        error = torch.where(self.v_read[:, :, None], error, self.radius)
        near = torch.cdist(self.output(), self.values, compute_mode="donot_use_mm_for_euclid_dist")
        return near + error + value

    def score_bound(
        self, log_p: torch.Tensor, fine: torch.Tensor, reach: torch.Tensor, spread: torch.Tensor, offset: torch.Tensor
    ) -> torch.Tensor:
        """The score part if K's rows ``fine``, bool [B, H, n], are read whole; spread, offset: by norm or by channel."""
        coarse = ~fine[:, :, None]
        return score_error(log_p, self.delta(fine), self.k_step, coarse, self.k_noise, reach, spread, offset)

    def value_bound(self, p: torch.Tensor, read: torch.Tensor, fine: torch.Tensor, columns: bool = False) -> torch.Tensor:
        """The value part if V's rows ``read`` (high) and ``fine`` (both planes) are read: [B, H, g, 1], or D by ``columns``."""
        sets = (s[:, :, None] for s in (~read, read & ~fine, fine))
        noise, spread, corner = (self.v_columns, self.columns, 1.0) if columns else (self.v_noise, self.spread, self.corner)
        return value_error(p, self.v_step, *sets, noise, spread, self.radius, corner)

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Proven bounds of the error of ``output()`` as it stands, in the l2 and the maximum norm: [B, H, g] each."""
        log_p, off = self.log_p(), self.output() - self.centre
        value = self.value_bound(log_p.exp(), self.v_read, self.v_fine)
        channels = self.value_bound(log_p.exp(), self.v_read, self.v_fine, columns=True)
        known = (log_p, self.k_fine, self.reach(value))
        l2 = value + self.score_bound(*known, self.spread, off.norm(dim=-1, keepdim=True) + value)
        channels = channels + self.score_bound(*known, self.columns, off.abs() + channels)
        return l2[..., 0], torch.minimum(l2[..., 0], channels.amax(-1))

    def result(self, store: Store, bound: torch.Tensor, bound_max: torch.Tensor, rounds: int) -> tuple[torch.Tensor, Trace]:
        """The output and its trace."""
        out = self.output()
        key_bits, value_bits = 8 + 8 * self.k_fine.float(), 8 * (self.v_read.float() + self.v_fine.float())
        channel_bits = key_bits.mean(-1, keepdim=True).expand(-1, -1, out.shape[-1])
        return out, Trace.of(store, self.meter, out, key_bits, value_bits, channel_bits, bound, bound_max, rounds)


def _keys_needed(reading: Reading, short: torch.Tensor, target: float, share: float) -> torch.Tensor:
    """K's low rows, bool [B, H, n], that bring the score part of the heads ``short`` within ``share`` of the error allowed."""
    log_p, out, step = reading.log_p(), reading.output(), reading.k_step
    allowed = target * out.norm(dim=-1, keepdim=True)
    reach, offset = reading.reach(allowed), (out - reading.centre).norm(dim=-1, keepdim=True) + allowed

    def missed(sets: torch.Tensor) -> torch.Tensor:
        return (reading.score_bound(log_p, sets[0], reach, reading.spread, offset) > share * allowed)[..., 0]

    weight = log_weight(log_p, reading.delta(torch.zeros_like(reading.k_fine)), step) - step.amax(-1, keepdim=True).log()
    # A wide interval can hide any probability. What might weigh as much as a probability of one is read first, all at once.
    return _lower(weight[None].clamp(max=0.0), reading.k_fine[None], short, missed)[0]


def _values_needed(reading: Reading, short: torch.Tensor, target: float) -> torch.Tensor:
    """V's high and low rows, bool [2, B, H, n], that bring the bound of the heads ``short`` within the error allowed."""
    log_p, out = reading.log_p(), reading.output()
    allowed = target * out.norm(dim=-1, keepdim=True)
    offset = (out - reading.centre).norm(dim=-1, keepdim=True) + allowed
    left = allowed - reading.score_bound(log_p, reading.k_fine, reading.reach(allowed), reading.spread, offset)

    def missed(sets: torch.Tensor) -> torch.Tensor:
        return (reading.value_bound(log_p.exp(), sets[0] | sets[1], sets[1]) > left)[..., 0]

    addends = torch.stack([log_p + reading.spread.log(), log_p + (reading.v_noise * reading.v_step).log()])
    return _lower(addends, torch.stack([reading.v_read, reading.v_fine]), short, missed)


def _lower(weight: torch.Tensor, chosen: torch.Tensor, short: torch.Tensor, missed: Callable) -> torch.Tensor:
    """Adds the heaviest rows to ``chosen``, bool [S, B, H, n], until no head of ``short``, bool [B, H, g], is ``missed``.

    weight: [S, B, H, g, n], logarithms, of S kinds of rows on one scale; missed: chosen -> bool [B, H, g].
    """
    level = weight.amax((0, -1))
    for _ in range(LEVELS):
        active = short & missed(chosen)
        if not bool(active.any()):
            return chosen
        level = torch.where(active, level - HALF_OCTAVE, level)
        chosen = chosen | ((weight >= level[..., None]) & active[..., None]).any(-2)
    return chosen | active.any(-1)[..., None]
