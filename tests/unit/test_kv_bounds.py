"""The bounds are never exceeded: random and adversarial problems in float64 against exact attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvquant.bounds import half_score_error, half_step, half_value_error, operator_norm, softmax_shift
from kvquant.kernels.reference_fixed import Reading
from kvquant.planes import join_half, split_half
from kvquant.store import Store

quick = settings(deadline=None, max_examples=50)
GROUP, TOKENS, DIM = 2, 64, 8
CASES, BATCH = 100_000, 4000


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(2, 30), delta=st.floats(0.0, 20.0), greedy=st.booleans())
def test_softmax_shifts_no_further_than_tanh(seed, n, delta, greedy):
    g = torch.Generator().manual_seed(seed)
    s = torch.randn(n, generator=g, dtype=torch.float64) * 3
    sign = torch.where(s > s.median(), -1.0, 1.0) if greedy else torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1
    shift = (s.softmax(-1) - (s + delta * sign).softmax(-1)).abs().sum() / 2
    assert float(shift) <= float(softmax_shift(torch.tensor(delta, dtype=torch.float64))) + 1e-12


def test_the_tanh_is_reached():
    for delta in (0.01, 0.3, 2.0, 9.0):
        s = torch.tensor([0.0, delta], dtype=torch.float64)
        shift = (s.softmax(-1) - (s + torch.tensor([delta, -delta], dtype=torch.float64)).softmax(-1)).abs().sum() / 2
        assert float(shift) == pytest.approx(math.tanh(delta / 2), rel=1e-9)
        assert float(softmax_shift(torch.tensor(delta, dtype=torch.float64))) == pytest.approx(math.tanh(delta / 2), rel=1e-9)


@quick
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 300), dim=st.integers(1, 130), power=st.integers(-12, 12))
def test_operator_norm_is_bounded_closely(seed, rows, dim, power):
    g = torch.Generator().manual_seed(seed)
    for x in (torch.randn(rows, dim, generator=g), torch.randn(rows, 2, generator=g) @ torch.randn(2, dim, generator=g)):
        x = x * 10.0**power
        true = torch.linalg.matrix_norm(x.double(), 2)
        bound = operator_norm(x.T @ x).double()
        assert float(true) <= float(bound) <= 1.05 * float(true)


@quick
@given(seed=st.integers(0, 10**6), loud=st.floats(-30.0, 10.0))
def test_scores_of_halves_err_no_more_than_their_bound(seed, loud):
    g = torch.Generator().manual_seed(seed)
    k = (torch.randn(40, 8, generator=g) * torch.randn(8, generator=g).mul(3).exp2() * 2.0**loud).clamp(-6e4, 6e4).half()
    bits = torch.tensor([0, 8, 12, 16])[torch.randint(0, 4, (8,), generator=g)]
    read = torch.where(bits == 0, 0.0, join_half(*split_half(k), bits))
    q = torch.randn(8, generator=g, dtype=torch.float64)
    error = ((read.double() - k.double()) @ q * 0.3).abs().amax()
    assert float(error) <= float(half_score_error(q, k.abs().amax(0).double(), bits, 0.3)) * (1 + 1e-12)


@quick
@given(seed=st.integers(0, 10**6), loud=st.floats(-30.0, 10.0))
def test_outputs_of_halves_err_no_more_than_the_mass_bound(seed, loud):
    g = torch.Generator().manual_seed(seed)
    v = (torch.randn(40, 8, generator=g) * 2.0**loud).half()
    bits = torch.tensor([0, 8, 12, 16])[torch.randint(0, 4, (40,), generator=g)]
    p = torch.randn(40, generator=g, dtype=torch.float64).mul(3).softmax(-1)
    read = torch.where(bits[:, None] == 0, v.float().mean(0), join_half(*split_half(v), bits[:, None]).float())
    error = (p @ (read.double() - v.double())).abs()
    bound = half_value_error(v.abs().amax(0).double(), torch.stack([p[bits == n].sum() for n in (12, 8, 0)]))
    assert bool((error <= bound * (1 + 1e-12)).all())
    assert half_step(torch.tensor(0.0), torch.tensor(8)) == 2.0**-17


KINDS = (
    *("random", "needle", "outlier", "equal scores", "subnormal", "zero rows", "single token"),
    *("worst query", "conspiracy", "twin keys", "twin values"),
)


def problems(
    kind: str, n: int, g: torch.Generator, dim: int = DIM
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """n problems at once: q [n, 2, D], k, v [n, 1, T, D], mask [n, T]."""
    q, k, v = (torch.randn(n, *shape, generator=g) for shape in ((GROUP, dim), (1, TOKENS, dim), (1, TOKENS, dim)))
    mask = torch.rand(n, TOKENS, generator=g) > torch.rand(n, 1, generator=g) * 0.9
    mask[:, -1] = True
    q = q * torch.randn(n, 1, 1, generator=g).mul(2).exp2()
    if kind == "needle":  # one token says something else entirely, and its score is far from the largest
        k[:, :, 5], v[:, :, 5] = -0.3 * q[:, :1], 1000.0 * v[:, :, 5]
    elif kind == "outlier":
        k[:, :, 7, 3], v[:, :, 9, 1] = 3000.0, -500.0
    elif kind == "equal scores":
        k, q = k[:, :, :1].expand_as(k) + 1e-3 * k, q * 30
    elif kind == "subnormal":
        k, v, q = (k * 2.0**-22).half().float(), (v * 2.0**-20).half().float(), q * 2.0**21
    elif kind == "zero rows":
        k, v = k * (torch.rand(n, 1, TOKENS, 1, generator=g) > 0.5), v * (torch.rand(n, 1, TOKENS, 1, generator=g) > 0.5)
    elif kind == "single token":
        mask = torch.arange(TOKENS) == torch.randint(0, TOKENS, (n, 1), generator=g)
    elif kind in ("worst query", "conspiracy", "twin keys", "twin values"):
        if "twin" in kind:  # rows that err in the same way: sums of errors do not average out
            k, v = (torch.cat([x[:, :, :1], x[:, :, 1:2].expand(-1, -1, TOKENS - 1, -1)], dim=2) for x in (k, v))
            mask = torch.ones_like(mask)
        store = Store("fixed", window=0)
        store.append(k, v)
        keys, prepared = store.planes.keys, (k - store.planes.k_centre) / store.planes.k_spread
        left = prepared / keys["step"][..., None] - keys["high"]
        direction = left[:, :, 3].sign()  # the worst for the sum of one row's rounding errors, by absolute values
        if "twin" in kind:
            direction = -0.1 * left[:, :, 3]  # ... and by norms; small, so that the other token gets a part of p only
        elif kind == "conspiracy":  # the direction in which all rows' errors are largest, and values that take their signs
            direction = torch.linalg.svd(left, full_matrices=False).Vh[:, :, 0]
            moved = (left @ direction[..., None]) * keys["step"][..., None]
            v = v[:, :, :1] * moved.sign() + 1e-3 * v
            mask = torch.ones_like(mask)
        q = q.norm(dim=-1, keepdim=True) * direction / store.planes.k_spread[:, :, 0]
    return q, k, v, mask


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float64 [B, H, g, D] for q [B, H, g, D]."""
    scores = (q.double() @ k.double().transpose(-1, -2) * k.shape[-1] ** -0.5).masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1) @ v.double()


def test_100_000_problems_read_at_random_stay_within_their_bounds():
    g = torch.Generator().manual_seed(0)
    counts, closest, closest_max = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0.0)
    for start in range(0, CASES, BATCH * GROUP):
        kind = KINDS[start // (BATCH * GROUP) % len(KINDS)]
        q, k, v, mask = problems(kind, BATCH, g)
        store = Store("fixed", window=0)
        store.append(k, v)
        reading = Reading(q[:, None].double(), store, mask[:, None, None], DIM**-0.5)
        share = torch.rand(3, BATCH, 1, 1, generator=g) * 1.4 - 0.2  # none in one case of seven, all in two
        k_fine, v_read, v_fine = torch.rand(3, BATCH, 1, TOKENS, generator=g) < share
        if kind in ("conspiracy", "twin keys"):
            k_fine[:], v_read[:], v_fine[:] = torch.arange(TOKENS) == 0, True, kind == "twin keys"
        elif kind == "twin values":
            k_fine[:], v_read[:], v_fine[:] = True, True, False
        reading.refine_keys(k_fine)
        reading.refine_values(v_read, v_fine)
        error = (reading.output() - exact_attention(q[:, None], k, v, mask)).abs()
        bound, bound_max = reading.bounds()
        for measured, limit, found in ((error.norm(dim=-1), bound, closest), (error.amax(-1), bound_max, closest_max)):
            # float64 rounding apart, of outputs as large as the values
            excess = measured - limit - 1e-12 * v.abs().amax()
            assert float(excess.max()) <= 0, f"{kind}: exceeded by {float(excess.max()):.3g}"
            found[kind] = max(found[kind], float((measured / limit.clamp(min=1e-30)).max()))
        counts[kind] += error.shape[0] * error.shape[2]
    print("cases:", counts)
    print("largest error / bound, l2: ", {kind: f"{x:.3f}" for kind, x in closest.items()})
    print("largest error / bound, max:", {kind: f"{x:.3f}" for kind, x in closest_max.items()})
    assert sum(counts.values()) >= CASES
