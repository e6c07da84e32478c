"""The criterion on one real sum: where the bits of its addends lie on the exponent axis, and which of them are wasted.

Of a half, eleven bits count: the leading one and ten of the mantissa. An addend of size 2**e has them from e down to e - 10.
The rule (AlignedKV, arXiv 2409.16546; kvquant.alignment) draws one line: for q.k the last bit of the largest addend, for
p.V the last bit of the result. What lies below the line cannot matter. Widths are 16, 12, 8 and 0 bits, and the query heads of a
group share a row, so some wasted bits are read all the same; a bit above the line always is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch

from kvquant.alignment import LEAST_HALF, STEPS, exponent, fold, wasted_in_output, wasted_in_scores, widths
from viz.kv_style import BLUE, GREY, ORANGE, RED, figure

MANTISSA = 10
# Bits of a half that hold no mantissa: the sign and the exponent.
OVERHEAD = 16 - MANTISSA
# More bars than this cannot be told apart on a page; the largest addends are shown.
MOST_BARS = 128


@dataclass(frozen=True)
class Addends:
    """The addends of one sum, largest first, and how they are read.

    index: int [n], the channel of q.k, or the token of p.V; top: int [n], floor(log2) of the addend's size; level: the
    exponent of the lowest useful bit; bits: int [n], 0, 8, 12 or 16, as read for the whole group of query heads; total: how many
    addends there are, of which the n largest are here; waste: the share of all their bits that lies below the level.
    """

    index: np.ndarray
    top: np.ndarray
    level: int
    bits: np.ndarray
    total: int
    waste: float

    @property
    def parts(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(lowest edge, height) in exponents, [n] each, of the three parts of every bar; they add up to 11 bits."""
        end, upper = self.top - MANTISSA, self.top + 1
        read = np.minimum(self.top - (self.bits - OVERHEAD), upper)
        useful = np.clip(self.level, read, upper)
        return {"useful": (useful, upper - useful), "spare": (read, useful - read), "unread": (end, read - end)}


def score_addends(q: torch.Tensor, k: torch.Tensor, head: int, steps: tuple[int, int, int] = STEPS) -> Addends:
    """The channels' addends in q.k of query head ``head``: their sizes over the tokens given, aligned on the largest.

    q: [1, Hq, D]; k: [1, Hkv, T, D], the tokens in planes, T >= 1.
    """
    peak = k.abs().amax(2).float()
    own = head // (q.shape[1] // k.shape[1])
    top = exponent(q[0, head]) + exponent(peak[0, own]).clamp(min=LEAST_HALF)
    bits = widths(wasted_in_scores(q, peak), steps)[0, own]
    return _sorted(top, int(top.max()) - MANTISSA, bits)


def output_addends(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, planed: int, head: int, scale: float, steps: tuple[int, int, int] = STEPS
) -> tuple[Addends, int]:
    """The tokens' addends in p.V of query head ``head``, aligned on the result, and the channel where that is tightest.

    The size of the output is taken as sum p|v| over the tokens in planes, what it would be if nothing cancelled; while the
    answer was written it was estimated from the likeliest 32 of them, so single widths may differ by a step. q: [1, Hq, D];
    k, v: [1, Hkv, L, D], of which the first ``planed`` >= 1 tokens are in planes.
    """
    heads = v.shape[1]
    scores = scale * fold(q.float(), heads) @ k.float().transpose(-1, -2)
    p = scores.softmax(-1)[..., :planed].flatten(1, 2)
    old = v[:, :, :planed].float().abs()
    peak = old.amax(2)
    size = (fold(p, heads) @ old).flatten(1, 2)
    bits = widths(wasted_in_output(p, size, peak), steps)[0]
    own = head // (q.shape[1] // heads)
    high = exponent(peak[0, own]).clamp(min=LEAST_HALF)
    room = exponent(size[0, head]) - high
    channel = int(room.argmin())
    top = exponent(p[0, head]) + high[channel]
    return _sorted(top, int(exponent(size[0, head, channel])) - MANTISSA, bits[own]), channel


def _sorted(top: torch.Tensor, level: int, bits: torch.Tensor) -> Addends:
    waste = (level - (top - MANTISSA)).clamp(0, MANTISSA + 1).double().mean() / (MANTISSA + 1)
    order = torch.argsort(top, descending=True, stable=True)
    # A zero has no bits that could be drawn.
    order = order[top[order] > top.max() - 2 * 64][:MOST_BARS]
    return Addends(order.numpy(), top[order].numpy(), level, bits[order].numpy(), len(top), float(waste))


PARTS = {
    "useful": ("read and useful", {"color": BLUE}),
    "spare": ("read, although it cannot matter", {"color": ORANGE}),
    "unread": (
        "left unread by the paper's rule",
        {"color": "rgba(138,143,152,.28)", "pattern": {"shape": "/", "fgcolor": GREY, "size": 4, "solidity": 0.25}},
    ),
}


def addend_figure(addends: Addends, names: list[str], title: str, across: str, level_name: str) -> go.Figure:
    """One bar per addend from its leading bit down to its last, the aligned level, and the waste below it shaded.

    names: of the addends shown, in their order, escaped; across: the axis of addends in words.
    """
    chart = figure(title, 240, 4, bargap=0.12, barmode="overlay")
    x = np.arange(1, len(addends.top) + 1)
    for key, (base, height) in addends.parts.items():
        label, marker = PARTS[key]
        chart.add_bar(
            x=x,
            y=height,
            base=base,
            name=label,
            marker=marker | {"line_width": 0},
            customdata=np.stack([names, addends.top, addends.bits], axis=1),
            hovertemplate="%{customdata[0]}<br>leading bit 2^%{customdata[1]}, %{customdata[2]} of 16 bits read<extra></extra>",
        )
    lowest = min(int((addends.top - MANTISSA).min()), addends.level) - 1
    highest = max(int(addends.top.max()) + 1, addends.level + MANTISSA + 1)
    chart.add_hrect(lowest, addends.level, fillcolor=RED, opacity=0.1, line_width=0, layer="below")
    # A trace, not a shape: only a trace is in the legend, and hidden by a click on it.
    ends = [x[0] - 0.5, x[-1] + 0.5]
    chart.add_scatter(
        x=ends, y=[addends.level] * 2, mode="lines", line={"color": RED, "width": 2.5}, name=level_name, hoverinfo="skip"
    )
    chart.update_yaxes(title_text="exponent e of a bit worth 2<sup>e</sup>", range=[lowest, highest + 0.5], dtick=4)
    chart.update_xaxes(title_text=across, showgrid=False)
    return chart


def score_figure(addends: Addends, layer: int, head: int, word: str) -> go.Figure:
    """The picture of q.k; layer and head from 0; word: the token that asks, escaped."""
    names = [f"channel {index + 1}" for index in addends.index]
    title = (
        f"q.k in layer {layer + 1}, query head {head + 1}, asked by \u201c{word}\u201d: {addends.waste:.0%} of the channels' bits "
        "lie below the last bit of the largest addend."
    )
    across = f"channels of K, largest addend first ({addends.total})"
    return addend_figure(addends, names, title, across, "aligned level: the last bit of the largest addend")


def output_figure(addends: Addends, channel: int, labels: list[str], layer: int, head: int, word: str) -> go.Figure:
    """The picture of p.V in its tightest channel; labels: of all tokens, escaped."""
    names = [labels[index] for index in addends.index]
    title = (
        f"p.V in layer {layer + 1}, query head {head + 1}, asked by \u201c{word}\u201d: {addends.waste:.0%} of the tokens' bits "
        "lie below the last bit of the result."
    )
    shown = f"{len(names)} of {addends.total}" if len(names) < addends.total else f"{addends.total}"
    across = f"tokens of V, likeliest first ({shown})"
    return addend_figure(addends, names, title, across, f"aligned level: last bit of the result, channel {channel + 1}")
