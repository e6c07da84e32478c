"""Where reading fewer bits pays: committed measurements of decode attention as a map of context and geometry.

assets/results/kv_attention.json is what ``python -m bench.kv_attention --out`` wrote: {"where": str, "error": what was certified,
"measured": {geometry: {context: {kernel: {"ms": median, ...}}}}}. "certified" and "paper" read fewer bits; "control" is ours with
every bit; all others are other people's.
"""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from viz.kv_style import figure

COMMITTED = Path(__file__).resolve().parent.parent / "assets" / "results" / "kv_attention.json"
NONE_YET = (
    "No map of regimes yet: assets/results/kv_attention.json is not in this copy, so nothing is claimed about where reading fewer "
    "bits is faster. The measurement above is of this machine alone."
)
# Blue where it pays, orange where it costs, white where nothing is gained; told apart by colour-blind readers.
RATIO_SCALE = [[0, "#b35806"], [0.5, "#f7f7f7"], [1, "#2166ac"]]


OURS, CONTROL = ("certified", "paper"), "control"


@dataclass(frozen=True)
class Regime:
    """One measured case: the fastest baseline's time over that of the fastest reading of fewer bits; above 1, ours is faster.

    by_kernel: our kernel with every bit read was faster still, so that it is not the bits that pay.
    """

    context: int
    geometry: str
    ratio: float
    detail: str
    by_kernel: bool = False


def regimes(path: Path = COMMITTED) -> tuple[list[Regime], str]:
    """(the committed cases, where they were measured), none where the file is missing or of another kind."""
    try:
        found = json.loads(path.read_text())
        cases = [(g, int(c), k) for g, by_context in found["measured"].items() for c, k in by_context.items()]
        return [_of(*case) for case in cases if _compares(case[2])], f"{found['where']}, an error of {found['error']:g} certified"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return [], ""


def _compares(kernels: dict) -> bool:
    """Whether both sides were measured: a run of one kernel alone says nothing."""
    return any(name in OURS for name in kernels) and any(name not in (*OURS, CONTROL) for name in kernels)


def _of(geometry: str, context: int, kernels: dict) -> Regime:
    times = {name: float(kernel["ms"]) for name, kernel in kernels.items()}
    theirs = min((value, name) for name, value in times.items() if name not in (*OURS, CONTROL))
    ours = min((value, name) for name, value in times.items() if name in OURS)
    every = times.get(CONTROL, math.inf)
    detail = f"{theirs[1]} {theirs[0]:.3g} ms, {ours[1]} {ours[0]:.3g} ms"
    if CONTROL in times:
        detail += f"; our kernel, every bit read: {every:.3g} ms"
    return Regime(context, geometry, theirs[0] / ours[0], detail, every < ours[0] < theirs[0])


def regime_figure(found: list[Regime], where: str) -> go.Figure:
    """A map of ratios: geometries across, contexts down, which a narrow page has room for; at least one case."""
    contexts = sorted({regime.context for regime in found})
    geometries = list(dict.fromkeys(regime.geometry for regime in found))
    cells = {(regime.geometry, regime.context): regime for regime in found}
    table = [[cells.get((geometry, context)) for geometry in geometries] for context in contexts]
    won, still = sum(regime.ratio > 1 for regime in found), sum(regime.by_kernel for regime in found)
    kernel = f"; in {still} of them (marked *) our kernel was faster still with every bit read" if still else ""
    chart = figure(
        f"Reading fewer bits was faster than the fastest baseline in {won} of {len(found)} cases, on synthetic numbers, on "
        f"{where}{kernel}.",
        34 * len(contexts) + 40,
        legend_rows=1,
    )
    chart.add_heatmap(
        z=[[cell.ratio if cell else None for cell in row] for row in table],
        x=["<br>".join(textwrap.wrap(geometry, 8)) for geometry in geometries],
        y=[f"{context:,}" for context in contexts],
        text=[[f"{cell.ratio:.2f}x{'*' * cell.by_kernel}" if cell else "" for cell in row] for row in table],
        texttemplate="%{text}",
        textfont_size=12,
        customdata=[[cell.detail if cell else "" for cell in row] for row in table],
        hovertemplate="%{x}, %{y} tokens: %{text}<br>%{customdata}<extra></extra>",
        colorscale=RATIO_SCALE,
        zmin=0,
        zmax=2,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    chart.update_xaxes(
        title_text="layer of (empty: not measured)",
        type="category",
        showgrid=False,
        tickangle=0,
        tickfont_size=10,
    )
    chart.update_yaxes(title_text="tokens of context", type="category", automargin=True, showgrid=False)
    return chart
