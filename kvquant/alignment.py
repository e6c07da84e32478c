"""The criterion: the addends of a sum deserve the same absolute precision, so each has bits that cannot matter.

Derivation. Read addend i of sum_i w_i x_i with m_i bits after the leading one, the rest filled with the mid-point. Its
error has a size of about |w_i| |x_i| 2**-m_i. Of all widths with the same total, sum_i m_i, the error energy
sum_i (w_i x_i)**2 4**-m_i is least (Lagrange) where every term is equal: m_i = c + log2|w_i x_i|. A bit of a small addend
below the last bit of the largest one is thus wasted: max_j e_j - e_i bits, with e = floor(log2|w x|) (*alignment on
addends*). If the sum's own size E is known, as it is for an average, what counts is its last bit, and E - e_i bits are
wasted (*alignment on the result*). A row that several query heads share wastes only what it wastes for all of them.

The widths that planes of 8, 4 and 4 bits offer follow: a half read with 12 bits errs by 2**-7 of itself, with 8 by 2**-3, and
unread by all of itself. So with 4, 8 and 11 bits wasted these leave the same error, 2**-11 of the largest addend or result.

Source: AlignedKV, arXiv 2409.16546, for scores and outputs; with absolute maxima and true thresholds of 4 and 8 exponent
steps. That 11 wasted bits leave nothing to read is from its authors' later code (github.com/AlignedQuant/AlignedKV, commit
26c329a), which takes it as zero. Here an unread value is taken as its channel's mean, the middle of what it could be, as the other
widths take it: thousands of tokens of which none matters matter together, and with zero the error grew with the context (28/4
heads of 128, synthetic numbers, largest error of a head at 1024, 16384 and 65536 tokens: 3e-3, 3e-2 and 8e-2; with the mean 2e-3,
4e-3 and 5e-3, as with three widths). For a channel of K the two are the same: what is common to all scores, the softmax ignores.
``wasted_in_softmax`` is neither's. Exponents are integers, so a width is off by less than one bit.
"""

from __future__ import annotations

import torch

# The exponent of zero: below every other by far, yet sums and differences of two stay within int32.
NOTHING = -4096
# Stored halves below 2**-14 (subnormals) have the step of 2**-14.
LEAST_HALF = -14
# An addend drops 4 bits once 4 of its bits are wasted, 8 once 8 are, and is left unread once all 11 of a half are.
STEPS = (4, 8, 11)
# The paper's three widths: nothing is left unread.
THREE_WIDTHS = (4, 8, 1 << 24)


def exponent(x: torch.Tensor) -> torch.Tensor:
    """floor(log2|x|), int32 of x's shape; NOTHING for zero. x: floating, finite."""
    return torch.where(x == 0, NOTHING, torch.frexp(x.float()).exponent - 1)


def fold(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[B, Hq, ...] -> [B, Hkv, group, ...]: the query heads that share a KV head, side by side.

    Raises ValueError where the query heads do not divide evenly.
    """
    if x.shape[1] % kv_heads:
        raise ValueError(f"{x.shape[1]} query heads cannot share {kv_heads} key/value heads evenly.")
    return x.unflatten(1, (kv_heads, -1))


def wasted_in_scores(q: torch.Tensor, k_peak: torch.Tensor) -> torch.Tensor:
    """Wasted bits of K's channels in q.k, aligned on addends, the least over the group.

    q: [B, Hq, D]; k_peak: [B, Hkv, D], the largest |k| of a channel over all tokens. Returns int [B, Hkv, D], >= 0.
    """
    size = exponent(fold(q, k_peak.shape[1])) + exponent(k_peak).clamp(min=LEAST_HALF)[:, :, None]
    return (size.amax(-1, keepdim=True) - size).amin(2)


def wasted_in_output(p: torch.Tensor, estimate: torch.Tensor, v_peak: torch.Tensor) -> torch.Tensor:
    """Wasted bits of V's tokens in sum_i p_i v_i, aligned on the result, the least over channels and the group.

    p: [B, Hq, T] probabilities; estimate: [B, Hq, D], the size of the output in each channel; v_peak: [B, Hkv, D], the
    largest |v| of a channel over all tokens. Returns int [B, Hkv, T], >= 0.
    """
    heads = v_peak.shape[1]
    room = exponent(fold(estimate, heads)) - exponent(v_peak).clamp(min=LEAST_HALF)[:, :, None]
    return (room.amin(-1, keepdim=True) - exponent(fold(p, heads))).amin(2).clamp(min=0)


def wasted_in_softmax(p: torch.Tensor, distance: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Wasted bits of K's tokens: how much coarser a token's score may be than the most delicate token's.

    An error d_i of score i moves the output by sum_i p_i d_i (v_i - o) to first order (o = sum_i p_i v_i, and
    dp_i = p_i (d_i - sum_j p_j d_j)). So the addends are p_i ||v_i - o||, and K's row i deserves
    c + log2(p_i ||v_i - o||) bits: a token that is hardly attended, or says what the output says already, tolerates a
    coarse score. p, distance: [B, Hq, T], with distance_i = ||v_i - o||. Returns int [B, Hkv, T], >= 0.
    """
    size = exponent(fold(p * distance, kv_heads))
    return (size.amax(-1, keepdim=True) - size).amin(2)


def widths(wasted: torch.Tensor, steps: tuple[int, int, int] = STEPS) -> torch.Tensor:
    """Bits of a half to read, int32: 16, or 12 from ``steps[0]`` wasted bits on, 8 from ``steps[1]``, none from ``steps[2]``."""
    return 16 - sum(bits * (wasted >= step).int() for bits, step in zip((4, 4, 8), steps, strict=True))
