"""Planes and stores: what is stored comes back, reads of fewer bits err no more than is promised, bookkeeping adds up."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvquant.fixed_planes import FixedPlanes
from kvquant.growing import Growing
from kvquant.half_planes import HalfPlanes
from kvquant.planes import HIGH_ERROR, LOW_ERROR, join_fixed, join_half, pack, split_fixed, split_half, to_half, unpack
from kvquant.store import Store

quick = settings(deadline=None, max_examples=200)
PATTERNS = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)


def rows(seed: int, *shape: int, kind: str = "random") -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=g)
    return {
        "random": x,
        "outlier": x + 1000.0 * (torch.rand(*shape, generator=g) > 0.97),
        "loud channel": x + 50.0 * (torch.arange(shape[-1]) == 1),
        "zero": 0.0 * x,
        "zero rows": x * (torch.rand(*shape[:-1], 1, generator=g) > 0.5),
        "constant": torch.full_like(x, -3.0),
        "subnormal": (x * 2.0**-20).half().float(),
        "tiny": x * 1e-42,
        "huge": x * 1e30,
    }[kind]


KINDS = ("random", "outlier", "loud channel", "zero", "zero rows", "constant", "subnormal", "tiny", "huge")


def test_all_65536_halves_come_back_bit_for_bit():
    high, middle, low = split_half(PATTERNS)
    assert int(middle.max()) == int(low.max()) == 15
    back = join_half(high, unpack(pack(middle)), unpack(pack(low)), 16)
    assert torch.equal(back.view(torch.int16), PATTERNS.view(torch.int16))


@pytest.mark.parametrize(("bits", "mantissa"), [(8, 2), (12, 6)])
def test_fewer_bits_of_a_half_err_at_most_half_a_step(bits, mantissa):
    high, middle, _ = split_half(PATTERNS)
    read = join_half(high, None if bits == 8 else middle, None, bits).double()
    x = PATTERNS.double()
    finite = torch.isfinite(x)
    least = torch.where(x == 0, -14, torch.frexp(x).exponent - 1).clamp(min=-14)
    share = ((read - x).abs() / torch.exp2(least - mantissa - 1.0))[finite]
    print(f"{bits} bits: largest error {float(share.max()):.4f} half steps; zero reads as {float(read[0]):.3g}")
    assert float(share.max()) <= 1
    normal = finite & (x.abs() >= 2.0**-14)
    assert float(((read - x).abs() / x.abs())[normal].max()) <= 2.0 ** -(mantissa + 1)
    assert torch.equal(read.sign()[finite & (x != 0)], x.sign()[finite & (x != 0)])
    assert torch.equal(read[torch.isinf(x)], x[torch.isinf(x)])
    assert bool(torch.isnan(read[PATTERNS.view(torch.int16) == 0x7E00]).all())


def test_widths_may_differ_by_row():
    x = rows(0, 4, 8).half()
    high, middle, low = split_half(x)
    bits = torch.tensor([8, 12, 16, 8])
    mixed = join_half(high, middle, low, bits[:, None])
    for i, b in enumerate(bits.tolist()):
        assert torch.equal(mixed[i], join_half(high[i], middle[i], low[i], b))


def test_conversion_to_halves_is_checked():
    bf16 = rows(1, 100, 8).bfloat16()
    bf16 = bf16[bf16.abs() >= 2.0**-14]
    assert torch.equal(to_half(bf16).double(), bf16.double())
    for bad in (7e4, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="65504"):
            to_half(torch.tensor([1.0, bad]))


@quick
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 40), kind=st.sampled_from(KINDS))
def test_fixed_rows_err_no_more_than_promised(seed, dim, kind):
    x = rows(seed, 30, dim, kind=kind)
    high, low, step = split_fixed(x)
    assert int(high.abs().max()) <= 127
    assert int(low.abs().max()) <= 127
    exact, s = x.double(), step.double()[:, None]
    assert float(((exact - high.double() * s).abs() / s).max()) <= HIGH_ERROR
    assert float(((exact - join_fixed(high, low, step, torch.float64)).abs() / s).max()) <= LOW_ERROR


def test_error_of_gaussian_rows_read_with_8_and_16_bits():
    x = rows(0, 500, 128)
    high, low, step = split_fixed(x)
    found = {}
    for name, read in (
        ("fixed 8", high * step[:, None]),
        ("fixed 16", join_fixed(high, low, step)),
        ("half 8", join_half(split_half(x.half())[0], None, None, 8).float()),
    ):
        found[name] = float((read - x).norm() / x.norm())
    print({name: f"{error:.2e}" for name, error in found.items()})
    assert found["fixed 8"] < found["half 8"] / 7
    assert found["fixed 16"] < 3e-5


def test_fixed_rows_refuse_what_is_not_finite():
    with pytest.raises(ValueError, match="nan or infinity"):
        split_fixed(torch.tensor([[1.0, float("nan")]]))


@quick
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS[:-1]), parts=st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_fixed_planes_keep_their_promises_whatever_comes_later(seed, kind, parts):
    planes, length = FixedPlanes(), sum(parts)
    k, v = rows(seed, 1, 2, length, 6, kind=kind), rows(seed + 1, 1, 2, length, 6, kind=kind)
    k[:, :, parts[0] :] *= 30.0  # far beyond the spread that the first part has fixed
    at = 0
    for part in parts:
        planes.append(k[:, :, at : at + part], v[:, :, at : at + part])
        at += part
    prepared = (k.double() - planes.k_centre.double()) / planes.k_spread.double()
    for growing, spread, exact in ((planes.keys, planes.k_noise, prepared), (planes.values, planes.v_noise, v.double())):
        step = growing["step"].double()[..., None]
        left = exact / step - growing["high"].double()
        assert float(left.abs().max()) <= HIGH_ERROR
        assert float((left - growing["low"].double() / 254).abs().max()) <= LOW_ERROR
        true = torch.linalg.matrix_norm(left, 2)
        assert bool((planes.noise(spread)[..., 0] >= true).all())
        assert bool((planes.noise(spread, columns=True) >= left.norm(dim=2)).all())
    around = v.double() - planes.v_centre.double()
    assert bool((planes.v_spread.norm[..., 0] >= torch.linalg.matrix_norm(around, 2) * (1 - 1e-9)).all())
    assert bool((planes.v_radius[..., 0] >= around.norm(dim=-1).amax(-1) * (1 - 1e-9)).all())


def test_high_planes_feed_the_integer_matrix_product():
    planes = FixedPlanes()
    planes.append(rows(0, 1, 2, 128, 64), rows(1, 1, 2, 128, 64))
    q = torch.randint(-127, 128, (64, 8), dtype=torch.int8)
    for plane in (planes.keys["high"][0, 1], planes.keys["low"][0, 1]):
        assert plane.is_contiguous()
        assert torch.equal(torch._int_mm(plane, q), plane.int() @ q.int())


def test_room_doubles_and_rows_stay_contiguous():
    growing, seen = Growing(), []
    for i in range(33):
        growing.append(x=torch.full((2, 1, 1, 3), float(i)))
        seen.append(growing.bytes_stored // (2 * 3 * 4))
        assert growing["x"][1, 0].is_contiguous()
    assert sorted(set(seen)) == [1, 2, 4, 8, 16, 32, 64]
    assert growing["x"][0, 0, :, 0].tolist() == list(range(33))
    assert growing.bytes_used == 33 * 2 * 3 * 4


@pytest.mark.parametrize("format", ["whole", "half", "fixed"])
@quick
@given(
    seed=st.integers(0, 10**6),
    window=st.integers(0, 70),
    steps=st.lists(st.tuples(st.sampled_from(["append", "crop", "select"]), st.integers(1, 200)), min_size=1, max_size=8),
)
@example(seed=0, window=0, steps=[("crop", 5), ("select", 2), ("append", 100)])
def test_a_store_holds_what_an_ordinary_cache_holds(format, seed, window, steps):
    store, plain = Store(format, window), torch.zeros(2, 2, 2, 0, 4, dtype=torch.float16)  # [k or v, B, H, L, D]
    for i, (action, size) in enumerate([("append", 70), *steps]):
        if action == "append":
            new = rows(seed + i, 2, plain.shape[1], 2, size, 4).half()
            store.append(*new)
            plain = torch.cat([plain, new], dim=3)
            assert store.format == "whole" or store.tail.length < window + 64
        elif action == "crop":
            keep = min(size, plain.shape[3])
            store.crop(keep)
            plain = plain[:, :, :, :keep]
        elif action == "select":
            index = torch.arange(size % 3 + 1) % plain.shape[1]
            store.select(index)
            plain = plain[:, index]
        assert store.shape == tuple(plain.shape[1:])
        k, v = store.dense(torch.float32)
        difference = max(float((k - plain[0]).abs().max()), float((v - plain[1]).abs().max()))
        assert difference <= (1e-3 if format == "fixed" else 0.0), f"largest difference {difference:.3g}"
        assert store.bytes_whole == 2 * plain[0].nbytes
        assert store.bytes_used <= store.bytes_stored


def test_the_newest_tokens_stay_whole():
    store = Store("fixed", window=64)
    k = rows(0, 1, 1, 300, 8)
    for i in range(300):
        store.append(k[:, :, i : i + 1], k[:, :, i : i + 1])
        assert store.tail.length == i + 1 - store.planed
        assert store.tail.length >= min(i + 1, 64)
        assert torch.equal(store.tail["k"], k[:, :, store.planed : i + 1])
    assert store.planed == 192
    store.crop(100)
    assert (store.planed, store.tail.length) == (100, 0)
    store.reset()
    assert (store.length, store.bytes_stored) == (0, 0)


def test_a_long_prompt_leaves_no_long_tail_behind():
    store = Store("half")
    store.append(rows(0, 1, 1, 5000, 8).half(), rows(1, 1, 1, 5000, 8).half())
    assert store.tail.bytes_stored <= 2 * 2 * 128 * 8 * 2


def test_memory_is_accounted_for_to_the_byte():
    batch, heads, dim = 2, 3, 16
    for format, per_row, constants in (
        ("half", 2 * dim * 2, 3 * 4 * dim),
        ("fixed", 2 * (2 * dim + 4), 3 * 4 * (dim * dim + 1 + dim) + 3 * 4 * dim + 4),
    ):
        store = Store(format, window=32)
        store.append(rows(0, batch, heads, 160, dim), rows(1, batch, heads, 160, dim))
        assert store.planed == 128
        assert store.bytes_used == batch * heads * (128 * per_row + constants + 32 * 2 * dim * 4)


def test_peaks_are_absolute():
    planes = HalfPlanes()
    k = -torch.ones(1, 1, 64, 4).half()
    planes.append(3 * k, 5 * k)
    planes.append(2 * k, 7 * k)
    assert planes.k_peak.unique().tolist() == [3.0]
    assert planes.v_peak.unique().tolist() == [7.0]


def test_a_block_that_cannot_be_stored_leaves_nothing_behind():
    good, bad, large = (torch.randn(1, 2, 70, 8, dtype=torch.bfloat16) for _ in range(3))
    bad[0, 0, 3, 2], large[0, 1, 5, 1] = torch.nan, 3e19
    store = Store("fixed", window=0)
    for rows in (bad, large):
        with pytest.raises(ValueError, match="nan or infinity, or are too large"):
            store.append(rows, good)
    store.append(good, good)
    assert store.length == 70 and (store.dense()[0].float() - good.float()).abs().max() < 0.02


def test_wrong_input_is_refused_with_a_reason():
    with pytest.raises(ValueError, match="Unknown storage format"):
        Store("int3")
    with pytest.raises(ValueError, match="negative"):
        Store("half", window=-1)
    store, x = Store("half"), torch.zeros(1, 2, 70, 4)
    for k, v in ((x, x[:, :1]), (x, x.half()), (x[0], x[0]), (x.int(), x.int()), (x[:, :, :0], x[:, :, :0])):
        with pytest.raises(ValueError, match="floating"):
            store.append(k, v)
    with pytest.raises(ValueError, match="even head"):
        store.append(x[..., :3], x[..., :3])
    store.append(x, x)
    with pytest.raises(ValueError, match="This cache holds"):
        store.append(x.half(), x.half())
    with pytest.raises(ValueError, match="Cannot keep"):
        store.crop(71)
