"""What was read of the KV cache for one answer, as figures: per layer and head, and per token."""

from __future__ import annotations

import math
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from kvquant.half_planes import BLOCK
from kvquant.modes import Certified, Paper
from viz.kv_run import KEYS, VALUES, Run, describe
from viz.kv_style import BITS_SCALE, BLUE, GREY, LINE, MOST_BITS, ORANGE, dress

NAMES = ("K, the keys: layers from the first to the last", "V, the values: layers from the first to the last")
COLOURS = (BLUE, ORANGE)
# One row of the heat map, in pixels; fewer where a model has many KV heads.
ROW, LEAST_ROW, MANY_HEADS = 34, 9, 8


def per_head(run: Run) -> np.ndarray:
    """Bits read per number, [2, layers, KV heads]: the average over decode steps and over the tokens there were."""
    return np.nanmean(run.bits, axis=(0, 4), dtype=np.float64)


def per_token(run: Run) -> np.ndarray:
    """Bits read per number, [2, P + S]: the average over layers, KV heads and the decode steps at which the token was there."""
    return np.nanmean(run.bits, axis=(0, 2, 3), dtype=np.float64)


def heat_map(run: Run) -> go.Figure:
    """Bits per layer (across) and KV head (down), K above V, on the scale of 0 to 16."""
    bits = per_head(run)
    layers, heads = bits.shape[1:]
    keys, values = run.mean_bits
    chart = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=NAMES)
    for which in (KEYS, VALUES):
        chart.add_heatmap(
            z=bits[which].T,
            x=np.arange(1, layers + 1),
            y=[str(head + 1) for head in range(heads)],
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            hovertemplate=f"{'KV'[which]} of layer %{{x}}, KV head %{{y}}: %{{z:.1f}} bits<extra></extra>",
            row=which + 1,
            col=1,
        )
    row = ROW if heads <= MANY_HEADS else max(LEAST_ROW, ROW * MANY_HEADS // heads)
    title = f"Which layers need precision? On average {keys:.1f} of 16 bits of K and {values:.1f} of V were read per number."
    dress(
        chart,
        title,
        2 * heads * row + 60,
        2,
        coloraxis={
            "cmin": 0,
            "cmax": MOST_BITS,
            "colorscale": BITS_SCALE,
            "colorbar": {
                "orientation": "h",
                "thickness": 10,
                "y": 0,
                "yref": "container",
                "yanchor": "bottom",
                "ypad": 18,
                "tickvals": [0, 4, 8, 12, 16],
                "ticktext": ["0 bits", "4", "8", "12", "16"],
            },
        },
    )
    chart.update_annotations(x=0, xanchor="left", font_size=12)
    chart.update_yaxes(autorange="reversed", title_text="KV head", showgrid=False)
    chart.update_xaxes(showgrid=False)
    return chart


def token_figure(run: Run) -> go.Figure:
    """Bits per token of the prompt and the answer, with the visual tokens and the answer marked; drag to zoom."""
    bits, prompt = per_token(run), len(run.patch)
    places = np.arange(1, bits.shape[1] + 1)
    labels = token_labels(run)[: bits.shape[1]]
    chart = go.Figure()
    for which in (KEYS, VALUES):
        chart.add_scatter(
            x=places,
            y=bits[which],
            mode="lines",
            line={"shape": "hvh", "width": 1.4, "color": COLOURS[which]},
            name="KV"[which],
            customdata=labels,
            hovertemplate=f"%{{customdata}}<br>{'KV'[which]}: %{{y:.1f}} bits<extra></extra>",
        )
    visual = np.flatnonzero(run.patch >= 0)
    title = f"Which tokens need precision? {_contrast(run, bits)}"
    dress(chart, title, 190, 1, dragmode="zoom", hovermode="x unified")
    marks = [("the image's tokens", visual[0] + 1, visual[-1] + 1, BLUE)] if len(visual) else []
    marks.append(("the answer", prompt + 1, bits.shape[1], GREY))
    for name, first, last, colour in marks:
        chart.add_vrect(first - 0.5, last + 0.5, fillcolor=colour, opacity=0.1, line_width=0)
        chart.add_annotation(
            x=(first + last) / 2 if name != "the answer" else last,
            xanchor="center" if name != "the answer" else "right",
            y=1.02,
            yanchor="bottom",
            yref="paper",
            text=name,
            showarrow=False,
            font_size=11,
        )
    chart.update_layout(margin_t=chart.layout.margin.t + 16, height=chart.layout.height + 16)
    chart.update_yaxes(title_text="bits per number", range=[0, MOST_BITS + 0.8], tickvals=[0, 4, 8, 12, 16])
    chart.update_xaxes(title_text="token (whole to the right of the dotted line)", showgrid=False)
    whole = int(run.planed[-1]) + 1
    if whole <= bits.shape[1]:
        chart.add_vline(whole - 0.5, line={"color": LINE, "dash": "dot", "width": 2})
    return chart


def token_labels(run: Run) -> list[str]:
    """Every token of the prompt and the answer in words, escaped."""
    columns = run.grid[1]
    parts = [
        f"patch in row {patch // columns + 1}, column {patch % columns + 1}" if patch >= 0 else f"text: {_shown(word)}"
        for patch, word in zip(run.patch, run.words, strict=False)
    ]
    return parts + [f"answer: {_shown(word)}" for word in run.words[len(run.patch) :]]


def summary(run: Run) -> str:
    """The run in figures, as HTML; all text is escaped."""
    keys, values = run.mean_bits
    mode = run.setting.mode
    chips = [
        (f"{(keys + values) / 2:.1f} bits", "read per number, of 16"),
        (f"{run.bytes_share:.0%}", "of the bytes of a 16-bit cache read per step"),
    ]
    # Of the exact output: the bound is relative to the output that was read.
    worst = run.worst_bound / (1 - run.worst_bound) if run.worst_bound < 1 else math.inf
    if isinstance(mode, Certified):
        beyond = "; no less could be proven there, so every bit was read" if worst > 1.001 * mode.error else ""
        chips.append((f"{worst:.3f}", f"largest proven error of a head's output, {mode.error:g} allowed{beyond}"))
    elif isinstance(mode, Paper):
        proven = f"{worst:.2f}" if worst < 1 else "no bound below 1"
        chips.append((proven, "largest proven error of a head's output; the paper's rule has no target"))
    shown = "".join(f'<span class="tl-chip"><b>{escape(value)}</b> {escape(label)}</span>' for value, label in chips)
    whole = run.bits.shape[-1] - int(run.planed[-1])
    setting, total = describe(run.setting), run.bits.shape[-1]
    return (
        f'<p class="tb-text">Asked: <b>{escape(run.question)}</b></p>'
        f'<div class="tl-verdict" data-run="done">{shown}</div>'
        f'<p class="tb-text">{escape(setting[:1].upper() + setting[1:])}: at the last step, {whole} of {total} tokens were '
        f"not in planes yet (they move there in blocks of {BLOCK}) and count with all 16 bits. <b>Planes save reading, not "
        "memory</b>: every bit stays stored. Bytes include scales and per-head constants, which weigh most in a context as short "
        f"as this one. Read by the {escape(run.answer.reader)} Ran on: {escape(run.where)}.</p>"
    )


def _shown(word: str) -> str:
    return escape(word.replace("\n", "\u21b5").strip() or "blank")


def _contrast(run: Run, bits: np.ndarray) -> str:
    """What the picture shows, from its own numbers."""
    planed = np.zeros(bits.shape[1], bool)
    planed[: int(run.planed[-1])] = True
    patch = np.pad(run.patch, (0, bits.shape[1] - len(run.patch)), constant_values=-1)
    means = [bits[VALUES, planed & kind].mean() if (planed & kind).any() else None for kind in (patch >= 0, patch < 0)]
    if not planed.any():
        return "All tokens are still in the window and were read whole."
    if None in means:
        return f"Tokens in planes were read with {bits[VALUES, planed].mean():.1f} bits of V."
    return f"Of V, patches in planes were read with {means[0]:.1f} bits and text in planes with {means[1]:.1f}."
