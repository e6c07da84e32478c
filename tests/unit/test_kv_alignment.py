"""The criterion: exponents, wasted bits and widths, by hand and by what they are for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvquant.alignment import (
    NOTHING,
    STEPS,
    THREE_WIDTHS,
    exponent,
    fold,
    wasted_in_output,
    wasted_in_scores,
    wasted_in_softmax,
    widths,
)
from kvquant.bounds import half_step

quick = settings(deadline=None, max_examples=50)


def test_exponents_of_ordinary_and_odd_numbers():
    x = torch.tensor([1.0, -1.99, 2.0, 0.5, -0.49, 2.0**-24, 65504.0, 0.0])
    assert exponent(x).tolist() == [0, 0, 1, -1, -2, -24, 15, NOTHING]
    assert exponent(x.half()).tolist() == exponent(x).tolist()


def test_four_wasted_bits_drop_four_eight_drop_eight_and_eleven_all():
    assert widths(torch.tensor([0, 3, 4, 7, 8, 10, 11, 4000])).tolist() == [16, 16, 12, 12, 8, 8, 0, 0]
    assert widths(torch.tensor([7, 8, 10, 11, 4000]), THREE_WIDTHS).tolist() == [12, 8, 8, 8, 8]
    assert widths(torch.tensor([0, 1, 2, 3]), (1, 2, 3)).tolist() == [16, 12, 8, 0]


def test_every_width_leaves_the_same_error_at_its_threshold():
    wasted = torch.tensor(STEPS)
    assert (half_step(torch.tensor(1.0), widths(wasted)) * 0.5**wasted).tolist() == [2.0**-11] * 3


def test_channels_of_a_score_are_aligned_with_the_largest_addend():
    q = torch.tensor([[[1.0, -1.0, 2.0**-5, 0.0]]])
    k_peak = torch.tensor([[[8.0, 0.5, 1.0, 60000.0]]])
    wasted = wasted_in_scores(q, k_peak)
    assert wasted[0, 0, :3].tolist() == [0, 4, 8]
    assert wasted[0, 0, 3] > 1000
    assert widths(wasted)[0, 0].tolist() == [16, 12, 8, 0]


def test_subnormal_channels_count_with_the_step_they_are_stored_with():
    q, tiny = torch.ones(1, 1, 2), torch.tensor([[[1.0, 2.0**-24]]])
    assert wasted_in_scores(q, tiny)[0, 0].tolist() == [0, 14]


def test_tokens_of_an_output_are_aligned_with_its_least_channel():
    p = torch.tensor([[[1.0, 0.25, 2.0**-9, 0.0]]])
    estimate, v_peak = torch.tensor([[[4.0, 0.25]]]), torch.tensor([[[4.0, 1.0]]])
    wasted = wasted_in_output(p, estimate, v_peak)
    assert wasted[0, 0, :3].tolist() == [0, 0, 7]  # the second channel leaves two bits less: -2 - e(p)
    assert wasted[0, 0, 3] > 1000


@quick
@given(seed=st.integers(0, 10**6), heads=st.integers(1, 3), group=st.integers(1, 4))
def test_a_shared_row_wastes_what_it_wastes_for_every_head_of_the_group(seed, heads, group):
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(2, heads * group, 8, generator=g).exp()
    p = torch.randn(2, heads * group, 12, generator=g).mul(4).softmax(-1)
    peak = torch.rand(2, heads, 8, generator=g) * 4
    for got, of in (
        (wasted_in_scores(q, peak), lambda i: wasted_in_scores(fold(q, heads)[:, :, i], peak)),
        (wasted_in_output(p, q, peak), lambda i: wasted_in_output(fold(p, heads)[:, :, i], fold(q, heads)[:, :, i], peak)),
        (wasted_in_softmax(p, p, heads), lambda i: wasted_in_softmax(*2 * [fold(p, heads)[:, :, i]], heads)),
    ):
        assert torch.equal(got, torch.stack([of(i) for i in range(group)]).amin(0))
        assert int(got.min()) >= 0


def test_a_score_error_moves_the_output_as_the_token_rule_says():
    g = torch.Generator().manual_seed(0)
    s, v = torch.randn(9, generator=g, dtype=torch.float64), torch.randn(9, 4, generator=g, dtype=torch.float64)
    p = s.softmax(-1)
    o = p @ v
    for i in range(9):
        bumped = s.clone()
        bumped[i] += 1e-6
        moved = (bumped.softmax(-1) @ v - o) / 1e-6
        torch.testing.assert_close(moved, p[i] * (v[i] - o), rtol=0, atol=1e-5)
    distance = (v - o).norm(dim=-1)
    wasted = wasted_in_softmax(p[None, None], distance[None, None], 1)[0, 0]
    assert wasted[(p * distance).argmax()] == 0


def test_aligned_widths_err_less_than_uniform_widths_of_the_same_total():
    g = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(50):
        size = torch.randn(64, generator=g, dtype=torch.float64).mul(2).exp2()  # sizes of the addends
        aligned = (8 + size.log2() - size.log2().mean()).clamp(min=0)
        energy = [float((size**2 * 4.0**-m).sum()) for m in (aligned, aligned.mean() * torch.ones_like(size))]
        ratios.append(energy[0] / energy[1])
    print(f"error energy, aligned over uniform: {min(ratios):.3g} to {max(ratios):.3g}")
    assert max(ratios) < 1


def test_query_heads_must_divide():
    with pytest.raises(ValueError, match="cannot share"):
        fold(torch.zeros(1, 5, 2), 2)
