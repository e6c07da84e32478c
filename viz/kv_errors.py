"""Errors against bits read, and measured errors beneath their proven bounds, as figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from viz.kv_live import Loss, Point, proven
from viz.kv_run import describe_mode
from viz.kv_style import BITS_SCALE, BLUE, GREEN, GREY, INK, ORANGE, PINK, dress, figure

COMMITTED = Path(__file__).resolve().parent.parent / "assets" / "results" / "kv_quality.json"
FAMILIES = {
    "certified": ("certified error", BLUE, "circle"),
    "paper": ("the paper's rule", ORANGE, "square"),
    "exact": ("all 16 bits", GREEN, "star"),
    "uniform": ("the same for every number", PINK, "diamond"),
}
# Names of bench.kv_quality that do not say their family, and how they read here.
UNIFORM = {
    "uniform_8": "uniform 8 bit",
    "uniform_12": "uniform 12 bit",
    "uniform_13": "uniform 13 bit",
    "fp8": "fp8",
    "int8": "int8",
}
# A logarithmic axis has no zero, and what float32 rounds away in every answer is no loss of reading: less is drawn here.
LEAST_ERROR = 1e-8


def committed(path: Path = COMMITTED) -> list[Loss]:
    """The errors of a full run of bench.kv_quality, or none where its results are missing or are of another kind."""
    try:
        found = json.loads(path.read_text())
        return [_of(name, row) for name, row in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _of(name: str, row: dict) -> Loss:
    family = "uniform" if name in UNIFORM else name.split("_")[0]
    # Bits with all that is read beside the numbers, as for a live loss.
    bits = 16 * (1 - float(row["bits_saved"]))
    return Loss(family, UNIFORM.get(name, name.replace("_", " ")), int(row["tokens"]), bits, float(row["kld"]), float(row["top1"]))


def quality_figure(live: list[Loss], benched: list[Loss]) -> go.Figure:
    """KL divergence (logarithmic) and top-1 agreement against bits read; live: filled marks, benched: hollow ones."""
    chart = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.07)
    # No divergence at all is drawn at the foot of the axis.
    foot = min((loss.kld for loss in live + benched if loss.kld > 0), default=1.0) / 3
    for losses, source, hollow in ((live, "this answer", False), (benched, "benchmark", True)):
        for family, (label, colour, symbol) in FAMILIES.items():
            rows = sorted((loss for loss in losses if loss.family == family), key=lambda loss: loss.bits)
            if rows:
                _add(chart, rows, f"{label}, {source}", colour, symbol + ("-open" if hollow else ""), foot)
    tokens = [losses[0].tokens if losses else 0 for losses in (live, benched)]
    sources = [f"{tokens[0]} tokens of this answer, measured live"] * bool(tokens[0])
    sources += [f"{tokens[1]:,} tokens of the benchmark (hollow)"] * bool(tokens[1])
    title = f"How far do the next token's probabilities move when fewer bits are read? {' and '.join(sources)}."
    _add_rounding(chart, live, foot)
    # On a narrow page each has a row; of fewer, plotly would take the rest from the axes.
    dress(chart, title, 300, sum(trace.showlegend is not False for trace in chart.data))
    least = min((loss.top1 for loss in live + benched), default=0.0)
    chart.update_yaxes(type="log", title_text="KLD, nats", exponentformat="power", dtick=1, row=1, col=1)
    room = 0.01 + 0.12 * (1 - least)
    shares = {"tickformat": ".0%", "range": [least - room, 1 + room], "tickvals": sorted({least, 1.0})}
    chart.update_yaxes(title_text="top-1", **shares, row=2, col=1)
    chart.update_xaxes(title_text="bits per number, with scales and constants", dtick=2, row=2, col=1)
    return chart


def _add_rounding(chart: go.Figure, live: list[Loss], foot: float) -> None:
    """The divergence that is left when every plane is read, as a line: nothing beneath it says anything about precision."""
    for loss in live:
        if loss.family == "rounding":
            ends = [min(other.bits for other in live), max(other.bits for other in live)]
            line = {"color": GREY, "dash": "dot", "width": 2}
            label = "every plane read: rounding alone, this answer"
            hover = f"{loss.name}<br>{loss.kld:.1e} nats<extra></extra>"
            chart.add_scatter(
                x=ends, y=[max(loss.kld, foot)] * 2, mode="lines", line=line, name=label, hovertemplate=hover, row=1, col=1
            )


def _add(chart: go.Figure, rows: list[Loss], label: str, colour: str, symbol: str, foot: float) -> None:
    style = {
        "x": [row.bits for row in rows],
        "mode": "lines+markers" if rows[0].family in ("certified", "paper") else "markers",
        "line": {"color": colour, "width": 1.3},
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}},
        "customdata": [[row.name, row.kld] for row in rows],
        "legendgroup": label,
    }
    chart.add_scatter(
        y=[max(row.kld, foot) for row in rows],
        name=label,
        hovertemplate="%{customdata[0]}<br>%{x:.1f} bits, %{customdata[1]:.1e} nats<extra>" + label + "</extra>",
        row=1,
        col=1,
        **style,
    )
    chart.add_scatter(
        y=[row.top1 for row in rows],
        name=label,
        showlegend=False,
        hovertemplate="%{customdata[0]}<br>%{x:.1f} bits, %{y:.1%} agree<extra>" + label + "</extra>",
        row=2,
        col=1,
        **style,
    )


def bound_figure(points: list[Point], mode) -> go.Figure:
    """Measured against proven error, both logarithmic, coloured by layer; every point belongs beneath the diagonal."""
    held, finite = proven(points)
    shown = [point for point in points if 0 < point.bound < float("inf")]
    certain = f"All {finite} measured errors lie" if held == finite else f"Only {held} of {finite} measured errors lie"
    missing = f" {len(points) - finite} more have no bound to compare with." if finite < len(points) else ""
    chart = figure(f"{certain} beneath their proven bound ({describe_mode(mode)}).{missing}", 300, 2)
    if not shown:
        return chart
    layers = max(point.layer for point in points) + 1
    bounds = [max(point.bound, LEAST_ERROR) for point in shown]
    errors = [max(point.error, LEAST_ERROR) for point in shown]
    chart.add_scatter(
        x=bounds,
        y=errors,
        mode="markers",
        marker={
            "color": [point.layer + 1 for point in shown],
            "colorscale": BITS_SCALE,
            "size": 6,
            "opacity": 0.8,
            "cmin": 1,
            "cmax": layers,
            "colorbar": {"title": {"text": "layer", "font": {"size": 12}}, "thickness": 10},
        },
        customdata=[[point.layer + 1, point.head + 1, point.step + 1, point.bound, point.error] for point in shown],
        hovertemplate="layer %{customdata[0]}, query head %{customdata[1]}, step %{customdata[2]}<br>proven %{customdata[3]:.2g}, "
        "measured %{customdata[4]:.2g}<extra></extra>",
        showlegend=False,
    )
    ends = [min(bounds + errors) / 1.5, max(bounds + errors) * 1.5]
    chart.add_scatter(x=ends, y=ends, mode="lines", line={"color": INK, "width": 1.5}, name="error = bound", hoverinfo="skip")
    target = getattr(mode, "error", None)
    if target is not None:
        line = {"color": GREY, "dash": "dot", "width": 2}
        chart.add_scatter(x=[target] * 2, y=ends, mode="lines", line=line, name="error allowed", hoverinfo="skip")
    # At most six powers of ten are written, whatever the span.
    axis = {"type": "log", "exponentformat": "power", "dtick": math.ceil(math.log10(ends[1] / ends[0]) / 5)}
    chart.update_xaxes(title_text="proven bound of the relative error", **axis)
    chart.update_yaxes(title_text="measured, in float64", **axis)
    return chart
