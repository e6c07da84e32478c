"""The compiled CPU kernel: it answers as the reference does, keeps its bounds, counts what it reads, and stands behind the door."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from kvquant.alignment import fold
from kvquant.attention import reading
from kvquant.cache import KVCache, Setting
from kvquant.kernels import decode_attention, fast, kernel_reason, reason, reference, triton_decode, warming
from kvquant.modes import Certified, Exact, Paper
from kvquant.store import Store
from tests.unit.test_kv_bounds import KINDS, exact_attention, problems
from tests.unit.test_kv_reference import attention, left_padded, problem, stored
from tests.unit.tiny import randomise

pytest.importorskip("numba")
MODES = {"fixed": (Exact(), Certified(0.02)), "half": (Exact(), Paper())}
# float32 arithmetic comes on top of the bound.
ROUNDING = 1e-5


@pytest.fixture(scope="module", autouse=True)
def compiled():
    for format in MODES:
        usable, why = warming.make(format)
        assert usable, why


def beyond(out, trace, exact) -> tuple[float, float]:
    """By how much of the largest value the bounds are exceeded, in the l2 and in the maximum norm."""
    error, size = out.double() - exact, float(exact.abs().max())
    l2, most = error.norm(dim=-1) - trace.bound, error.abs().amax(-1) - trace.bound_max
    return float(l2.max()) / size, float(most.max()) / size


@pytest.mark.parametrize("format", ["fixed", "half"])
@pytest.mark.parametrize(("group", "heads"), [(1, 4), (2, 1), (3, 3), (4, 1), (5, 1), (6, 1), (7, 2), (8, 1), (9, 1)])
@pytest.mark.parametrize("length", [65, 127, 129, 700, 1601])
@pytest.mark.parametrize("dim", [64, 128])
def test_it_answers_as_the_reference(format, group, heads, length, dim):
    q, k, v = problem(length + group, heads=heads, group=group, length=length, dim=dim, peaked=0.5)
    store, mask = stored(format, k, v, window=length % 64), left_padded(2, length)
    for visible in (None, mask):
        exact = attention(q, k, v, visible)
        for mode in MODES[format]:
            assert fast.unserved(q, store) is None
            out, trace = fast.decode_attention(q, store, mode, visible)
            expected, known = reference.decode_attention(q, store, mode, visible)
            difference = float((out - expected).abs().max() / expected.abs().max())
            over = beyond(out, trace, exact)
            share = trace.bytes_read / known.bytes_read
            print(f"{mode}: largest difference {difference:.2g}, {share:.3f} of its bytes, beyond {over}")
            assert max(over) < ROUNDING
            if format == "half":  # a probability next to a power of two may be read with another width
                assert difference < (1e-5 if isinstance(mode, Exact) else 1e-3)
                assert trace.bytes_read == pytest.approx(known.bytes_read, rel=1e-2)
                torch.testing.assert_close(trace.bound, known.bound, rtol=2e-2, atol=1e-6)
            elif isinstance(mode, Exact):
                assert difference < 1e-5
                assert trace.bytes_read == known.bytes_read
                assert bool((trace.bound <= 10 * known.bound + 1e-6).all())
            else:
                assert bool((trace.bound <= mode.error * exact.norm(dim=-1)).all())
                assert trace.bytes_read < (1.4 if length < 500 else 1.15) * known.bytes_read
            for name in ("key_bits", "value_bits", "channel_bits", "norm", "bound"):
                assert getattr(trace, name).shape == getattr(known, name).shape, name
            torch.testing.assert_close(trace.norm, out.norm(dim=-1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(trace.channel_bits.mean(), trace.key_bits.mean(), rtol=1e-4, atol=0)
            assert trace.bytes_whole == known.bytes_whole


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    group=st.integers(1, 9),
    length=st.integers(65, 900),
    window=st.integers(0, 64),
    error=st.sampled_from([1e-5, 1e-3, 0.01, 0.05, 0.2]),
    peaked=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    loud=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_the_bound_is_never_exceeded(seed, group, length, window, error, peaked, loud):
    q, k, v = problem(seed, group=group, length=length, dim=64, peaked=peaked, loud=loud)
    store, mask = stored("fixed", k, v, window), left_padded(2, length)
    out, trace = decode_attention(q, store, Certified(error), mask)
    exact = attention(q, k, v, mask)
    largest = float((fold(q, 2) @ k.transpose(-1, -2)).abs().max()) / 8
    assert max(beyond(out, trace, exact)) < ROUNDING + 1e-6 * largest  # a score has 24 bits
    met = trace.bound <= error * exact.norm(dim=-1)
    read = torch.cat([trace.key_bits, trace.value_bits], dim=-1).amin(-1) >= 16  # [B, Hkv]: everything
    assert bool((met | read.repeat_interleave(group, dim=1)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_hardest_problems_stay_within_their_bounds(kind):
    """Those of test_kv_bounds, 2,000 heads at five errors, by the kernel that answers on the page."""
    q, k, v, mask = problems(kind, 1000, torch.Generator().manual_seed(7), dim=64)
    store = Store("fixed", window=0)
    store.append(k, v)
    exact = exact_attention(q[:, None], k, v, mask).flatten(1, 2)
    size = v.abs().amax((1, 2, 3))[:, None]
    for error in (0.002, 0.02, 0.1, 0.5, 2.0):
        out, trace = fast.decode_attention(q, store, Certified(error), mask)
        wrong = out.double() - exact
        beyond = float(((wrong.norm(dim=-1) - trace.bound) / size).max())
        closest = float((wrong.norm(dim=-1) / trace.bound.clamp(min=1e-30)).max())
        print(f"{kind}, error {error}: beyond the bound by {beyond:.2g} of the largest value, {closest:.2f} of it at the worst")
        assert beyond < ROUNDING and float(((wrong.abs().amax(-1) - trace.bound_max) / size).max()) < ROUNDING


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [50.0, 900.0, 3e4])
def test_a_needle_with_a_small_score_is_found(seed, size):
    q, k, v = problem(seed, batch=1, heads=1, group=1, length=900, dim=64, peaked=0.05)
    v[0, 0, 77] = size  # hardly attended, yet much of the output
    k[0, 0, 77] -= 2 * q[0, 0] / q[0, 0].norm()
    out, trace = fast.decode_attention(q, stored("fixed", k, v), Certified(0.01))
    exact = attention(q, k, v)
    error = float((out.double() - exact).norm() / exact.norm())
    print(
        f"needle of {size}: {trace.value_bits[0, 0, 77]:.0f} bits, error {error:.2g}, bound {float(trace.bound / trace.norm):.2g}"
    )
    assert error <= 0.01
    assert max(beyond(out, trace, exact)) < ROUNDING
    if size >= 900:
        assert trace.value_bits[0, 0, 77] >= 8


@pytest.mark.parametrize("kind", ["twin keys", "equal scores", "zeros", "one token", "outlier channel", "large"])
def test_hard_cases_stay_within_their_bounds(kind):
    q, k, v = problem(3, length=500, dim=64)
    if kind == "twin keys":
        k[:, :, 1::2] = k[:, :, ::2]
        v[:, :, 1::2] = -0.9 * v[:, :, ::2]
    elif kind == "equal scores":
        k[:] = k[:, :, :1]
    elif kind == "zeros":
        k[:], v[:, :, 100:] = 0, 0
    elif kind == "one token":
        k[:, :, 250] += 30 * q.unflatten(1, (2, -1))[:, :, 0]
    elif kind == "outlier channel":
        k[..., 5] *= 200
    else:
        q, v = q * 50, v * 1e4
    out, trace = fast.decode_attention(q, stored("fixed", k, v), Certified(0.02))
    over = beyond(out, trace, attention(q, k, v))
    print(f"{kind}: beyond {over}, {trace.mean_bits:.1f} bits, {trace.rounds} rounds")
    # Scores of thousands lose digits in float32, in the reference as well.
    assert max(over) < (1e-3 if kind in ("large", "outlier channel") else ROUNDING)


@pytest.mark.parametrize("loud", [3.0, 30.0, 100.0, 300.0, 1000.0, 1070.0, 1300.0, 3000.0])
def test_a_query_too_loud_for_coarse_scores_is_the_reference_s(loud):
    """Two rows whose low planes, in a loud query, lift one and lower the other by hundreds of octaves."""
    g = torch.Generator().manual_seed(0)
    k, v = torch.randn(1, 1, 128, 64, generator=g), torch.randn(1, 1, 128, 64, generator=g)
    sign = k[0, 0, 0].sign()
    k[0, 0, 1] = k[0, 0, 0]
    k[0, 0, :2] += torch.tensor([[0.45], [-0.45]]) * sign * k[0, 0, 0].abs().max() / 127
    q = (loud * sign)[None, None]
    store = stored("fixed", k, v)
    out, trace = fast.decode_attention(q, store, Certified(0.02))
    error = float((out.double() - attention(q, k, v)).norm())
    passed_on = fast._compiled(q, store, Certified(0.02), None, None) is None
    print(f"x {loud}: error {error:.2g}, bound {float(trace.bound):.2g}, passed on: {passed_on}")
    assert out.isfinite().all() and error <= float(trace.bound) + 1e-5 * loud
    assert passed_on == (loud >= 300)
    if passed_on:
        assert torch.equal(out, reference.decode_attention(q, store, Certified(0.02))[0])


def test_less_error_takes_more_bytes_and_no_more_than_the_control():
    q, k, v = problem(5, length=3000, dim=64, peaked=0.7)
    store = stored("fixed", k, v)
    control = fast.decode_attention(q, store, Exact())[1].bytes_read
    read = [fast.decode_attention(q, store, Certified(error))[1].bytes_read for error in (0.3, 0.1, 0.03, 0.01, 0.003)]
    print([f"{r / control:.2f}" for r in read])
    assert read == sorted(read)
    assert read[0] < 0.75 * control
    assert read[-1] <= control


def test_unread_bytes_are_not_read():
    q, k, v = problem(7, batch=2, length=900, dim=64, peaked=0.5)
    store = stored("fixed", k, v)
    out, trace = fast.decode_attention(q, store, Certified(0.1))
    n = store.planed
    unread = {
        "keys": {"low": trace.key_bits[:, :, :n] < 16},
        "values": {"high": trace.value_bits[:, :, :n] < 8, "low": trace.value_bits[:, :, :n] < 16},
    }
    for side, planes in unread.items():
        for name, rows in planes.items():
            assert bool(rows.any()), f"{side} {name}: all of it was read, so this shows nothing"
            plane = getattr(store.planes, side)[name]
            plane[rows] = torch.randint(-100, 100, (int(rows.sum()), 64), dtype=torch.int8)
    again, _ = fast.decode_attention(q, store, Certified(0.1))
    assert torch.equal(out, again)


@pytest.mark.parametrize(("format", "mode"), [("fixed", Certified(0.1)), ("half", Paper())])
def test_without_a_trace_the_answer_is_the_same(format, mode):
    q, k, v = problem(3, length=400, dim=64)
    store = stored(format, k, v)
    out, trace = fast.decode_attention(q, store, mode)
    again, none = fast.decode_attention(q, store, mode, traced=False)
    assert torch.equal(out, again) and trace is not None and none is None


def test_a_growing_cropped_and_reordered_cache_is_followed():
    q, k, v = problem(9, batch=2, length=600, dim=64)
    store = stored("fixed", k[:, :, :300], v[:, :, :300])
    order = torch.tensor([1, 0])
    for change in (
        lambda: store.append(k[:, :, 300:], v[:, :, 300:]),
        lambda: store.crop(290),
        lambda: store.select(order),
        lambda: store.append(k[order, :, 290:500], v[order, :, 290:500]),
    ):
        change()
        found, _ = decode_attention(q, store, Exact())
        expected, _ = reference.decode_attention(q, store, Exact())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_serve_goes_to_the_reference_with_a_reason(monkeypatch):
    q, k, v = problem(0, length=200)
    for store, words in ((stored("fixed", k, v), "multiple of 64"), (stored("whole", k, v), "still whole")):
        assert words in reason(q, store)
        torch.testing.assert_close(decode_attention(q, store, Exact())[0], reference.decode_attention(q, store, Exact())[0])
    q, k, v = problem(0, length=200, dim=64)
    store = stored("fixed", k, v)
    assert "numba" in reason(q, store) and "numba" in kernel_reason()
    assert "float64" in fast.unserved(q, store, torch.float64)
    assert decode_attention(q, store, Exact(), dtype=torch.float64)[0].dtype == torch.float64
    q[0, 0, 0] = torch.nan
    assert bool(decode_attention(q, store, Exact())[0].isnan().any()), "a query that is not a number has no answer"
    with pytest.raises(ValueError, match="empty"):
        decode_attention(q, Store("fixed"), Exact())
    with pytest.raises(ValueError, match="cannot share"):
        decode_attention(q[:, :5], store, Exact())
    monkeypatch.setattr(warming, "ready", lambda _: (False, "plain torch reference: numba is not installed."))
    assert reason(q, store) == "plain torch reference: numba is not installed."


def test_a_gpu_is_served_by_triton_where_it_is_usable(monkeypatch):
    _, k, v = problem(0, length=200, dim=64)
    store, on_gpu = stored("fixed", k, v), SimpleNamespace(device=torch.device("cuda"), is_cuda=True)
    monkeypatch.setattr(triton_decode, "available", lambda: (False, "no Triton kernel."))
    assert reason(on_gpu, store) == "plain torch reference: no Triton kernel."
    monkeypatch.setattr(triton_decode, "available", lambda: (True, "Triton kernel."))
    assert reason(on_gpu, store) == "Triton kernel."
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(triton_decode, "decode_attention", lambda *request: request)
    monkeypatch.setattr(reference, "check", lambda *request: None)
    monkeypatch.setattr(reference, "decode_attention", lambda *request: "by the definition")
    assert decode_attention(on_gpu, store, Exact()) == (on_gpu, store, Exact(), None, None)


class LaunchError(Exception):
    """Like triton's, no RuntimeError."""


def failing_on_a_gpu(monkeypatch, error: Exception):
    """A query on a GPU and its store, whose launch raises ``error``."""
    _, k, v = problem(0, length=200, dim=64)

    def fail(*request):
        raise error

    monkeypatch.setattr(triton_decode, "_failures", [])
    monkeypatch.setattr(triton_decode, "_tried", lambda: (True, "Triton kernel."))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(triton_decode, "decode_attention", fail)
    monkeypatch.setattr(reference, "check", lambda *request: None)
    monkeypatch.setattr(reference, "decode_attention", lambda *request: "by the definition")
    return SimpleNamespace(device=torch.device("cuda"), is_cuda=True), stored("fixed", k, v)


@pytest.mark.parametrize("kind", [RuntimeError, LaunchError])
def test_a_launch_that_fails_is_the_last_one(kind, monkeypatch):
    on_gpu, store = failing_on_a_gpu(monkeypatch, kind("out of resource: shared memory"))
    assert decode_attention(on_gpu, store, Exact()) == "by the definition"
    assert "shared memory" in reason(on_gpu, store) and not triton_decode.available()[0]


def test_a_request_without_memory_does_not_end_the_kernel(monkeypatch):
    on_gpu, store = failing_on_a_gpu(monkeypatch, torch.OutOfMemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        decode_attention(on_gpu, store, Exact())
    assert triton_decode.available()[0]


@pytest.fixture(scope="module")
def llama():
    """Two layers with heads of 64, as the compiled kernel wants them."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=273, head_dim=64, max_position_embeddings=2048, **sizes)
    model = LlamaForCausalLM(config)
    return randomise(model)


@pytest.mark.parametrize("setting", [Setting(Certified(0.02)), Setting(Paper())])
def test_a_model_reads_its_cache_through_it(llama, setting, monkeypatch):
    ids = torch.randint(17, 273, (2, 200), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :30] = 0

    def logits() -> tuple[torch.Tensor, int]:
        cache = KVCache(llama.config, setting)
        with reading(llama), torch.no_grad():
            llama(ids[:, :190], attention_mask=mask[:, :190], past_key_values=cache)
            steps = [
                llama(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache).logits for t in range(190, 200)
            ]
        return torch.cat(steps, dim=1), sum(layer.bytes_read for step in cache.traces for layer in step)

    calls = []
    compiled = fast.decode_attention
    monkeypatch.setattr(fast, "decode_attention", lambda *args: calls.append(1) or compiled(*args))
    found, read = logits()
    assert len(calls) == 20, "two layers, ten steps"
    monkeypatch.setattr(fast, "unserved", lambda *args: "not now")
    expected, known = logits()
    assert len(calls) == 20
    difference = float((found - expected).abs().max() / expected.std())
    print(f"{setting.mode}: logits differ by {difference:.2g} of their deviation, {read / known:.3f} of the bytes")
    assert difference < (0.1 if isinstance(setting.mode, Certified) else 1e-3)
    assert read <= 1.15 * known
