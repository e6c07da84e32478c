"""Reference attention: exact is exact, certified keeps its word, and nothing is read that is not counted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kv_data import make
from kvquant.alignment import STEPS, THREE_WIDTHS, wasted_in_scores, widths
from kvquant.kernels.reference import decode_attention
from kvquant.modes import Certified, Exact, Paper
from kvquant.planes import BASE
from kvquant.store import Store

quick = settings(deadline=None, max_examples=200)


def problem(
    seed: int,
    batch: int = 2,
    heads: int = 2,
    group: int = 3,
    length: int = 400,
    dim: int = 16,
    peaked: float = 1.0,
    loud: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [B, Hq, D], k, v [B, Hkv, L, D] as halves in float32, with loud channels in K and a mean in V."""
    g = torch.Generator().manual_seed(seed)
    channels = (loud * torch.randn(heads, 1, dim, generator=g)).exp()
    k = torch.randn(batch, heads, length, dim, generator=g) * channels + 3 * torch.randn(heads, 1, dim, generator=g)
    v = torch.randn(batch, heads, length, dim, generator=g) + torch.randn(heads, 1, dim, generator=g)
    q = peaked * torch.randn(batch, heads * group, dim, generator=g)
    return q, k.half().float(), v.half().float()


def stored(format: str, k: torch.Tensor, v: torch.Tensor, window: int = 64) -> Store:
    store = Store(format, window)
    store.append(k, v)
    return store


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Exact attention in float64, [B, Hq, D]."""
    q, k, v = q.double().unflatten(1, (k.shape[1], -1)), k.double(), v.double()
    scores = q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).flatten(1, 2)


def left_padded(batch: int, length: int) -> torch.Tensor:
    return torch.arange(length) >= torch.arange(batch)[:, None] * (length // (batch + 1))


@pytest.mark.parametrize("format", ["whole", "half", "fixed"])
@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 391])
def test_exact_mode_is_attention_of_the_stored_numbers(format, group, length):
    q, k, v = problem(length, group=group, length=length)
    store, mask = stored(format, k, v), left_padded(2, length)
    for visible in (None, mask):
        out, trace = decode_attention(q, store, Exact(), visible)
        k_stored, v_stored = store.dense(torch.float64)
        difference = float((out - attention(q, k_stored, v_stored, visible)).abs().max())
        assert out.shape == q.shape
        assert difference < 1e-5, f"largest difference {difference:.3g}"
        real = (out.double() - attention(q, k, v, visible)).norm(dim=-1)
        assert bool((real <= trace.bound + 1e-5).all())
        if format != "fixed":
            assert float(trace.bound.max()) == 0.0
    print(f"{format}, {length} tokens, group {group}: largest difference {difference:.2g}")


def test_exact_reads_as_many_bytes_as_there_are():
    q, k, v = problem(0)
    for format in ("whole", "half", "fixed"):
        store = stored(format, k, v)
        _, trace = decode_attention(q, store, Exact())
        if format == "fixed":  # Gram matrices serve the norms when tokens are added; attention reads four norms per head
            grams = sum(s.gram.nbytes for s in (store.planes.k_noise, store.planes.v_noise, store.planes.v_spread))
            assert trace.bytes_read == store.bytes_used - grams - store.planes.k_noise.columns.nbytes
        else:
            assert trace.bytes_read == store.bytes_used
        assert trace.bytes_whole == k.nbytes + v.nbytes


@pytest.mark.parametrize(("format", "mode"), [("whole", Exact()), ("half", Exact()), ("half", Paper()), ("fixed", Certified(0.02))])
def test_a_left_padded_row_answers_as_it_does_alone(format, mode):
    q, k, v = problem(3, batch=1, length=300)
    alone, _ = decode_attention(q, stored(format, k, v), mode)
    pad = [torch.cat([torch.zeros_like(x[:, :, :100]), x], dim=2) for x in (k, v)]
    long = problem(4, batch=1, length=400)
    q2, k2, v2 = (torch.cat(pair) for pair in zip((q, *pad), long, strict=True))
    mask = torch.ones(2, 400, dtype=torch.bool)
    mask[0, :100] = False
    both, _ = decode_attention(q2, stored(format, k2, v2), mode, mask)
    difference = float((both[0] - alone[0]).norm(dim=-1).max() / alone[0].norm(dim=-1).min())
    print(f"{format}, {mode}: largest difference {difference:.2g}")
    # Planes begin at other tokens and statistics include the padding, so only exact reads agree exactly.
    assert difference < (1e-5 if isinstance(mode, Exact) else 0.02)


def test_paper_mode_reads_the_widths_of_the_criterion_and_stays_within_its_bound():
    q, k, v = problem(1, length=640, peaked=0.3, loud=3.0)
    store = stored("half", k, v)
    out, trace = decode_attention(q, store, Paper())
    n, tail = store.planed, store.tail.length
    expected = widths(wasted_in_scores(q, k[:, :, :n].abs().amax(2)))
    assert expected.unique().tolist() == [8, 12, 16]
    torch.testing.assert_close(trace.channel_bits, (expected * n + 32.0 * tail) / (n + tail))
    assert set(trace.value_bits[:, :, :n].unique().tolist()) == {0, 8, 12, 16}
    error = out.double() - attention(q, k, v)
    bits = torch.cat([trace.key_bits[:, :, :n], trace.value_bits[:, :, :n]]).mean()
    relative = float(error.norm(dim=-1).mean() / trace.norm.mean())
    print(f"{float(bits):.2f} bits in planes, relative error {relative:.2g}, bound {float((trace.bound / trace.norm).mean()):.2g}")
    assert bool((error.norm(dim=-1) <= trace.bound + 1e-5).all())
    assert bool((error.abs().amax(-1) <= trace.bound_max + 1e-5).all())
    assert relative < 0.01
    three, more = decode_attention(q, store, Paper(THREE_WIDTHS))
    assert set(more.value_bits[:, :, :n].unique().tolist()) == {8, 12, 16} and more.bytes_read > trace.bytes_read
    print(f"what is left unread moves the output by {float((three - out).norm() / three.norm()):.2g}")
    all_bits, _ = decode_attention(q, store, Paper(steps=(10**6, 10**6, 10**6)))
    assert torch.equal(all_bits, decode_attention(q, store, Exact())[0])


@pytest.mark.parametrize("length", [1024, 8192])
def test_what_the_paper_mode_leaves_unread_does_not_add_up(length):
    q, k, v = make("like", 6, 2, 64, length)
    store, exact = stored("half", k, v), attention(q, k, v)
    found = [decode_attention(q, store, Paper(steps)) for steps in (STEPS, THREE_WIDTHS)]
    error, known = (float(((out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max()) for out, _ in found)
    unread = float((found[0][1].value_bits == 0).float().mean())
    print(f"{length} tokens, {unread:.0%} of V unread: largest error {error:.2g}, {known:.2g} with three widths")
    assert unread > 0.1 and error < 1.5 * known


@quick
@given(
    seed=st.integers(0, 10**6),
    group=st.integers(1, 4),
    length=st.integers(65, 500),
    window=st.integers(0, 64),
    error=st.sampled_from([1e-5, 1e-3, 0.01, 0.03, 0.1, 0.5]),
    peaked=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
)
def test_certified_mode_keeps_its_word(seed, group, length, window, error, peaked):
    q, k, v = problem(seed, group=group, length=length, peaked=peaked)
    store = stored("fixed", k, v, window)
    mask = left_padded(2, length)
    out, trace = decode_attention(q, store, Certified(error), mask, dtype=torch.float64)
    exact = attention(q, k, v, mask)
    measured = out - exact
    assert bool((measured.norm(dim=-1) <= trace.bound + 1e-12).all())
    assert bool((measured.abs().amax(-1) <= trace.bound_max + 1e-12).all())
    assert bool((trace.bound_max <= trace.bound).all())
    met = trace.bound <= error * exact.norm(dim=-1)
    read = torch.cat([trace.key_bits, trace.value_bits], dim=-1).amin(-1) >= 16  # [B, Hkv]: everything
    assert bool((met | read.repeat_interleave(group, dim=1)).all())


def two_clusters(loud: float, seed: int = 1):
    """Keys in two tight clusters and a query of ``loud`` times the size, so that coarse scores may be off by hundreds."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(64, generator=g)
    side = torch.where(torch.arange(128) < 64, 1.0, -1.0)[:, None]
    k = (side * base + 0.002 * torch.randn(128, 64, generator=g))[None, None].half()
    v = torch.randn(1, 1, 128, 64, generator=g).half()
    q = torch.randn(1, 1, 64, generator=g)
    return loud * (q + (0.2 - (q @ base) / (base @ base))[..., None] * base), k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loud", [10.0, 100.0, 1000.0, 3000.0])
def test_a_loud_query_proves_nothing_rather_than_too_much(loud, dtype):
    """What is certain of the softmax's sum then rounds to either side of nothing; a negative bound would certify anything."""
    for seed in range(8):
        q, k, v = two_clusters(loud, seed)
        out, trace = decode_attention(q, stored("fixed", k, v), Certified(0.02), dtype=dtype)
        error = float((out.double() - attention(q, k, v)).norm())
        slack = 1e-9 if dtype == torch.float64 else 1e-6 * loud
        assert float(trace.bound) >= 0 and error <= float(trace.bound) + slack, (seed, error, float(trace.bound))


def test_less_error_takes_more_bits():
    q, k, v = problem(5, length=2000, peaked=0.7)
    store, exact = stored("fixed", k, v), attention(q, k, v)
    bits, bounds = [], []
    for error in (0.3, 0.1, 0.03, 0.01, 0.003):
        out, trace = decode_attention(q, store, Certified(error))
        bits.append(trace.bytes_read)
        bounds.append(float((trace.bound / trace.norm).max()))
        found = float(((out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max())
        print(f"error {error}: {trace.mean_bits:.2f} bits, {trace.rounds} rounds, bound {bounds[-1]:.2g}, measured {found:.2g}")
        assert found <= error
    assert bits == sorted(bits)
    assert bits[0] < bits[-1]


def test_a_needle_with_a_small_score_is_found():
    q, k, v = problem(6, batch=1, heads=1, group=1, length=600, peaked=0.05)
    v[0, 0, 77] = 900.0  # hardly attended, yet most of the output
    k[0, 0, 77] -= 2 * q[0, 0] / q[0, 0].norm()
    store = stored("fixed", k, v)
    out, trace = decode_attention(q, store, Certified(0.01))
    exact = attention(q, k, v)
    assert trace.value_bits[0, 0, 77] == 16
    assert float((out.double() - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize(("format", "mode"), [("half", Paper()), ("fixed", Certified(0.05)), ("fixed", Certified(0.3))])
def test_what_is_not_counted_is_not_read(format, mode):
    q, k, v = problem(7, batch=2, length=700, peaked=0.5, loud=3.0 if format == "half" else 1.0)
    q[..., 0] *= 2.0**-13  # a channel of K that no query asks for
    store = stored(format, k, v)
    out, trace = decode_attention(q, store, mode)
    planes, n = store.planes, store.planed
    value_bits = trace.value_bits[:, :, :n]
    if format == "half":
        key_bits = widths(wasted_in_scores(q, planes.k_peak))[:, :, None, :, None]  # [B, H, 1, D, 1]
        plan = [("high", 8, key_bits), ("middle", 12, key_bits), ("low", 16, key_bits)]
        constants = planes.k_peak.nbytes + planes.v_peak.nbytes + planes.v_mean.nbytes
    else:
        plan = [("low", 16, trace.key_bits[:, :, :n, None])]
        norms = (planes.k_noise.norm, planes.v_noise.norm, planes.v_noise.columns, planes.v_spread.norm, planes.v_spread.columns)
        constants = sum(x.nbytes for x in (*norms, planes.v_radius, planes.k_centre, planes.k_spread, planes.v_centre))
        constants += planes.keys["step"].nbytes + planes.values["step"].nbytes
    plan = [(planes.keys, *what) for what in plan]
    for name, least in (("high", 8), ("middle", 12), ("low", 16)):
        if (format, name) != ("fixed", "middle"):
            plan.append((planes.values, name, least, value_bits[..., None]))
    counted = constants + store.tail.bytes_used + (planes.keys["high"].nbytes if format == "fixed" else 0)
    for growing, name, least, bits in plan:
        rows = growing[name]
        unread = (bits < least).expand(rows.shape)
        assert bool(unread.any()), f"{name}: all of it was read, so this shows nothing"
        counted += int((~unread).sum())
        rows[unread] = torch.randint(0, 100, (int(unread.sum()),)).to(rows.dtype)
    assert trace.bytes_read == counted
    again, trace_again = decode_attention(q, store, mode)
    assert torch.equal(out, again)
    assert torch.equal(trace.value_bits, trace_again.value_bits)
    assert trace.bytes_read < stored(format, k, v).bytes_used


def test_centre_and_spread_fold_into_the_query():
    q, k, v = problem(8, batch=1, heads=1, group=1, length=128)
    store = stored("fixed", k, v, window=0)
    planes = store.planes
    scores = q.double()[:, None] * planes.k_spread.double() @ (
        (planes.keys["high"].double() + planes.keys["low"].double() / BASE) * planes.keys["step"].double()[..., None]
    ).transpose(-1, -2) + q.double()[:, None] @ planes.k_centre.double().transpose(-1, -2)
    k_stored, _ = store.dense(torch.float64)
    torch.testing.assert_close(scores, q.double()[:, None] @ k_stored.transpose(-1, -2), rtol=0, atol=1e-9)


def test_wrong_requests_are_refused_with_a_reason():
    q, k, v = problem(0, length=70)
    store = stored("half", k, v)
    for change, message in (
        ({"q": q[:, :5]}, "cannot share"),
        ({"q": q[:1]}, "q must be"),
        ({"mask": torch.ones(2, 69, dtype=torch.bool)}, "mask must be"),
        ({"mask": torch.ones(2, 70)}, "mask must be"),
        ({"mode": Certified()}, "mode Exact or Paper"),
        ({"store": stored("fixed", k, v), "mode": Paper()}, "mode Exact or Certified"),
        ({"store": Store("half")}, "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_attention(**({"q": q, "store": store, "mode": Exact()} | change))
    for wrong in (lambda: Certified(0.0), lambda: Certified(0.1, 1.0), lambda: Paper((8, 4, 11))):
        with pytest.raises(ValueError, match="must"):
            wrong()
