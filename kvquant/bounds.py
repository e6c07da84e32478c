"""Proven bounds on what reading fewer bits does to one step of attention, o = sum_i p_i v_i with p = softmax(s).

**Set-up.** s', v' are what was read, p' = softmax(s'), o' = sum_i p'_i v'_i, d_i = s_i - s'_i with |d_i| <= delta_i. With
b = sum_i p'_i v_i (read weights, true values) the error has two parts, and the triangle inequality adds them:
    o - o' = (o - b) + (b - o') = [score part: sum_i (p_i - p'_i) v_i] + [value part: sum_i p'_i (v_i - v'_i)].

**Score part** (:func:`score_error`). p_i = p'_i e**d_i / Z with Z = sum_i p'_i e**d_i. As sum_i p'_i (v_i - b) = 0,
    o - b = sum_i p'_i (e**d_i - 1) (v_i - b) / Z.
Token by token this is at most sum_i p'_i (e**delta_i - 1) ||v_i - b|| / Z: it lets all errors conspire, and no head that
attends evenly would ever be certified with coarse scores. But the rounding errors are *stored*: d = step * (U q) for the
matrix U of residuals in steps, so the l2 norm of d / step over any set of tokens is at most ||U|| ||q|| =: noise (operator
norm; a submatrix has no larger one). With X the matrix of rows v_i - c (c any fixed point), g_i = e**d_i - 1,
y_i = p'_i step_i (e**delta_i - 1) / delta_i (so that |p'_i g_i| <= y_i |d_i / step_i|, the secant of e**d) and v_i - b =
(v_i - c) - (b - c), Cauchy-Schwarz gives for a set C of tokens
    ||sum_C p'_i g_i (v_i - b)|| <= ||X|| ||p' g||_2 + ||b - c|| |sum_C p'_i g_i|
                                <= ||X|| noise max_C y + ||b - c|| noise ||y||_2.
For n even tokens of dimension D this is about D times smaller than token by token. The smaller of the two is taken for the
coarse tokens, and token by token for the fine ones. Z >= sum_i p'_i e**-delta_i, and, as e**d >= 1 + d,
Z >= 1 - sum_fine p'_i delta_i - noise ||p' step||_2.

**Value part** (:func:`value_error`). Likewise: a row is unread (its value is taken as c), coarse (high plane) or fine.
    ||sum_unread p'_i (v_i - c)|| <= min(||X|| ||p'||_2, radius sum p'_i),   radius = max_i ||v_i - c||,
    ||sum_coarse p'_i (v_i - v'_i)|| <= min(||U_v|| ||p' step||_2, HIGH_ERROR sqrt(D) sum p'_i step_i), and fine rows
LOW_ERROR sqrt(D) sum p'_i step_i.

**Norms.** With scalars ||X||, ||b - c||, ||U_v|| and ``corner`` = sqrt(D) the bounds hold for the l2 norm of the error; with
the norms of X's and U_v's columns, |b_j - c_j| and ``corner`` = 1 they hold for each output channel. The arithmetic of
whoever computes o' (float32 sums) comes on top.
"""

from __future__ import annotations

import torch

from kvquant.planes import HIGH_ERROR, LOW_ERROR

# ||X||**2 <= trace((X'X)**2**k)**2**-k: with k = 6 at most a factor D**(1/128) = 1.04 above the operator norm for D = 128.
SQUARINGS = 6


def softmax_shift(delta: torch.Tensor) -> torch.Tensor:
    """Largest total variation between softmax(s) and softmax(s') if every |s_i - s'_i| <= delta: tanh(delta / 2).

    Changing the scores of a set by +delta and the others by -delta multiplies the set's odds by at most e**(2 delta). From
    probability x to x e / (1 - x + x e), e = e**(2 delta), the gain is greatest at x = 1 / (1 + e**delta), where it is
    tanh(delta / 2). An output moves by at most this times the diameter of {v_i}.
    """
    return torch.tanh(delta / 2)


def half_step(peak: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Largest error of halves no larger than ``peak``, read with ``bits`` (0, 8, 12 or 16; broadcast): see kvquant.planes."""
    relative = 1.0 * (bits < 8) + 2.0**-3 * (bits == 8) + 2.0**-7 * (bits == 12)
    return peak.clamp(min=2.0**-14) * relative


def half_score_error(q: torch.Tensor, k_peak: torch.Tensor, bits: torch.Tensor, scale: float) -> torch.Tensor:
    """Largest |error| of any score if channel c of K, at most ``k_peak``, is read with ``bits``; all [..., D] -> [...]."""
    return scale * (q.abs() * half_step(k_peak, bits)).sum(-1)


def half_value_error(v_peak: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """|error| of each output channel: v_peak_j (2**-7 mass12 + 2**-3 mass8 + 2 mass0); unread values are taken as their mean.

    v_peak: [..., D] (at least 2**-14 is used, for subnormals); masses: [..., 3], p' of the tokens read with 12, 8 and no bits.
    Returns [..., D].
    """
    return v_peak.clamp(min=2.0**-14) * (masses @ masses.new_tensor([2.0**-7, 2.0**-3, 2.0]))[..., None]


def fixed_score_error(q: torch.Tensor, step: torch.Tensor, fine: torch.Tensor, scale: float) -> torch.Tensor:
    """Largest |error| of each score against fixed-point K: scale ||q||_1 step_i times the error of the planes read.

    q: [..., D], multiplied by K's spread; step, fine (both planes were read): [..., T]. Returns [..., T].
    """
    return scale * q.abs().sum(-1, keepdim=True) * step * torch.where(fine, LOW_ERROR, HIGH_ERROR)


def log_expm1(delta: torch.Tensor) -> torch.Tensor:
    """log(e**delta - 1) for delta > 0, without overflow."""
    return delta + torch.log(-torch.expm1(-delta))


def log_weight(log_p: torch.Tensor, delta: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """log y_i of the score part, y_i = p'_i step_i (e**delta_i - 1) / delta_i: the order in which K's rows deserve bits."""
    delta = delta.clamp(min=1e-30)
    return log_p + log_expm1(delta) - delta.log() + step.log()


def score_error(
    log_p: torch.Tensor,
    delta: torch.Tensor,
    step: torch.Tensor,
    coarse: torch.Tensor,
    noise: torch.Tensor,
    reach: torch.Tensor,
    spread: torch.Tensor,
    offset: torch.Tensor,
) -> torch.Tensor:
    """Bound of the score part, proven at the head of this file.

    log_p: [..., T], log p'; tokens with exact scores may be left out; delta: [..., T]; step: [..., T], K's; coarse: bool
    [..., T], tokens that ``noise`` [...] covers; reach: [..., T], at least ||v_i - b||; spread: [..., n], ||X|| (n = 1) or
    X's column norms (n = D); offset: [..., n], at least ||b - c|| or |b_j - c_j|. Returns [..., n].
    """
    p, noise = log_p.exp(), noise[..., None]
    y = torch.where(coarse, log_weight(log_p, delta, step).exp(), 0.0)
    moved = (log_p + log_expm1(delta.clamp(min=1e-30))).exp()
    rough = torch.where(coarse, moved, 0.0)
    largest = torch.minimum(noise * y.amax(-1, keepdim=True), _norm(rough))
    total = torch.minimum(noise * _norm(y), _sum(rough))
    by_token = _sum(rough * reach)
    fine = _sum(torch.where(coarse, 0.0, moved) * reach)
    shift = torch.minimum(noise * _norm(torch.where(coarse, p * step, 0.0)), _sum(torch.where(coarse, p * delta, 0.0)))
    mass = torch.maximum(1 - shift - _sum(torch.where(coarse, 0.0, p * delta)), 1 + _sum(p * torch.expm1(-delta)))
    # Of coarse scores hundreds apart next to nothing of Z is certain, and its sums round to either side of that.
    mass = (mass - 16 * torch.finfo(mass.dtype).eps).clamp(min=0.0)
    bound = (fine + torch.minimum(spread * largest + offset * total, by_token)) / mass
    return bound.nan_to_num(nan=torch.inf, posinf=torch.inf)  # inf * 0, inf / inf: nothing is certified


def value_error(
    p: torch.Tensor,
    step: torch.Tensor,
    unread: torch.Tensor,
    coarse: torch.Tensor,
    fine: torch.Tensor,
    noise: torch.Tensor,
    spread: torch.Tensor,
    radius: torch.Tensor,
    corner: float,
) -> torch.Tensor:
    """Bound of the value part, proven at the head of this file; a token in none of the three sets is exact.

    p: [..., T], p'; step: [..., T], V's; unread, coarse, fine: bool [..., T]; noise: [..., n], ||U_v|| (n = 1) or its
    column norms (n = D); spread: [..., n], of X likewise; radius: [..., 1]; corner: sqrt(D) or 1. Returns [..., n].
    """
    skipped, rounded = torch.where(unread, p, 0.0), torch.where(coarse, p * step, 0.0)
    missing = torch.minimum(spread * _norm(skipped), radius * _sum(skipped))
    half = torch.minimum(noise * _norm(rounded), HIGH_ERROR * corner * _sum(rounded))
    bound = missing + half + LOW_ERROR * corner * _sum(torch.where(fine, p * step, 0.0))
    return bound.nan_to_num(nan=torch.inf, posinf=torch.inf)


def operator_norm(gram: torch.Tensor) -> torch.Tensor:
    """An upper bound of ||X|| from X'X [..., D, D]: trace((X'X)**64)**(1/128), rescaled at each squaring. Returns [...].

    Infinity where float32 overflows.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-30)
    power, log_bound = gram / trace[..., None, None], trace.log()
    for k in range(1, SQUARINGS + 1):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-30)
        power, log_bound = power / trace[..., None, None], log_bound + trace.log() / 2**k
    # The margin is for float32 rounding, in the sums behind ``gram`` as well.
    return (torch.exp(log_bound / 2) * (1 + 2.0**-10)).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _sum(x: torch.Tensor) -> torch.Tensor:
    return x.sum(-1, keepdim=True)


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.norm(dim=-1, keepdim=True)
