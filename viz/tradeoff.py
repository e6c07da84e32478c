"""The trade-off of one image as a figure: importance retained against diversity, a point per kept set, MMR's curve by lambda."""

import base64
from pathlib import Path

import gradio as gr
import numpy as np
import plotly.graph_objects as go
from PIL import Image

from pruning.tradeoff import AXES, Point, Sweep, falls, matched
from viz import overlay, style

HERE = Path(__file__).resolve().parent
AXIS_TITLES = {
    "hopkins": "Hopkins statistic H (image tokens)",
    "hopkins_box": "Hopkins statistic H (random box)",
    "coverage": "Cosine to the nearest kept patch",
    "mean_distance": "Mean distance of kept neighbours",
    "min_distance": "Least distance of kept neighbours",
}
SYMBOLS = {"topk": "square", "farthest": "triangle-up", "dpp": "star", "random": "x", "topk-farthest": "diamond"}
NOTE = (
    "Every point is a set of patches that a method keeps: point at one and see them; click one, and the page uses it. Better is up "
    "(more of the importance is kept) and left (what is kept is more diverse). Bars are the standard deviation over draws of the "
    "random points; the ring is the method in use."
)


def component() -> gr.HTML:
    """The patch map beside the figure; its value is what :func:`payload` returns, its event ``choose`` names a point."""
    return gr.HTML(
        value=None,
        html_template=(HERE / "tradeoff.html").read_text(),
        css_template=(HERE / "patches.css").read_text(),
        js_on_load=(HERE / "patches.js").read_text() + (HERE / "tradeoff.js").read_text(),
        elem_id="tradeoff-map",
        label="Patches of a point",
    )


def payload(picture: Image.Image, grid: tuple[int, int], point: Point) -> dict:
    """The picture and the set that the map shows while no point is pointed at."""
    shown = {"kept": bits(point.kept), "caption": caption(point)}
    return {"image": overlay.data_url(picture), "rows": grid[0], "cols": grid[1], "n": grid[0] * grid[1]} | shown


def bits(kept: np.ndarray) -> str:
    """Kept tokens int64 [K] as base64 of a bit mask, first token in the highest bit; it ends with the last kept one."""
    mask = np.zeros(int(kept.max()) + 1, dtype=bool)
    mask[kept] = True
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def caption(point: Point) -> str:
    """A kept set in a sentence."""
    m = point.measures
    name = style.name_of(point.method) + ("" if point.lam is None else f", lambda {point.lam:g}")
    return f"{name}: {len(point.kept)} patches hold {m.retention:.1%} of the importance; H = {m.hopkins:.3f}"


def headline(sweep: Sweep, axis: str) -> str:
    """What the figure shows, counted: how MMR fares against the hybrid, and whether lambda orders the axis."""
    mmr, hybrid = sweep.of("idpruner"), sweep.of("topk-farthest")
    # Both ends of the hybrid are MMR's own ends, so they say nothing.
    inner = hybrid[1:-1]
    won = int(matched(inner, mmr, axis).sum())
    sign = -1.0 if AXES[axis] else 1.0
    against, _ = falls([sign * getattr(p.measures, axis) for p in mmr])
    steps = f"in {against} of {len(mmr) - 1} steps a larger lambda" if against else "no larger lambda"
    fares = f"MMR matches or beats {won} of {len(inner)} hybrids on both axes"
    return f"Keeping {sweep.k} of {sweep.n} patches, {fares}; {steps} keeps a more diverse set"


def nearest(sweep: Sweep, method: str, lam: float | None) -> Point | None:
    """The point of the method in use, at the nearest lambda; None where the sweep has none of that method."""
    points = sweep.of(method)
    return min(points, key=lambda p: abs((p.lam or 0.0) - (lam or 0.0))) if points else None


def figure(sweep: Sweep, axis: str, current: Point | None) -> go.Figure:
    """x: one of :data:`pruning.tradeoff.AXES`, y: importance retention. Raises ValueError for another axis."""
    if axis not in AXES:
        raise ValueError(f"Unknown axis '{axis}'. Known: {', '.join(AXES)}.")
    x_title = AXIS_TITLES[axis] + "<br>(left is more diverse)"
    fig = style.figure(500, x_title, "Importance retained, I", above=62)
    color = style.COLORS["topk-farthest"]
    look = {"marker": {"size": 7, "color": color, "symbol": "diamond"}, "line": {"color": color, "width": 1, "dash": "dot"}}
    fig.add_trace(_trace(sweep.of("topk-farthest"), axis, style.name_of("topk-farthest"), mode="lines+markers", **look))
    fig.add_trace(_mmr(sweep.of("idpruner"), axis))
    for method in ("topk", "farthest", "dpp", "random"):
        marker = {"color": style.COLORS[method], "symbol": SYMBOLS[method], "size": 13, "line": {"color": "#fff", "width": 1}}
        trace = _trace(sweep.of(method), axis, style.name_of(method), mode="markers", marker=marker)
        # Random lies so far below that the others would shrink to a line; its legend entry brings it in.
        fig.add_trace(trace.update(visible="legendonly" if method == "random" else True))
    if current is not None:
        ring = {"color": "rgba(0,0,0,0)", "size": 21, "line": {"color": style.ACCENT, "width": 3.5}}
        fig.add_trace(_trace([current], axis, "In use", mode="markers", marker=ring).update(hoverinfo="skip", hovertemplate=None))
    fig.update_yaxes(tickformat=".1%")
    fig.update_xaxes(autorange="reversed" if AXES[axis] else True, nticks=6)
    fig.update_layout(
        legend={"orientation": "h", "x": 0, "y": -0.28, "yanchor": "top", "font": {"size": 12}},
        hovermode="closest",
    )
    place = {"xref": "paper", "yref": "paper", "x": 1, "y": 1.02, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
    fig.add_annotation(text=f"keep ratio {sweep.k / sweep.n:.1%}", font={"size": 12}, **place)
    return fig


def _trace(points: list[Point], axis: str, name: str, **style_of: object) -> go.Scatter:
    """Points with what the browser needs to show and to choose them: [bits, caption, method, lambda]."""
    spread = [getattr(p.measures, f"{axis}_std", 0.0) for p in points]
    return go.Scatter(
        x=[getattr(p.measures, axis) for p in points],
        y=[p.measures.retention for p in points],
        error_x={"type": "data", "array": spread, "color": style.GRID, "thickness": 1.5, "width": 3, "visible": any(spread)},
        name=name,
        customdata=[[bits(p.kept), caption(p), p.method, p.lam] for p in points],
        hovertemplate="%{customdata[1]}<extra></extra>",
        **style_of,
    )


def _mmr(points: list[Point], axis: str) -> go.Scatter:
    ramp = {
        "title": {"text": "MMR: lambda", "side": "top"},
        "orientation": "h",
        "thickness": 9,
        "len": 0.5,
        "x": 0,
        "xanchor": "left",
        "y": 1.01,
        "yanchor": "bottom",
        "ypad": 2,
        "tickvals": [0, 0.5, 1],
        "tickfont": {"size": 11},
        "outlinewidth": 0,
    }
    marker = {
        "size": 11,
        "color": [p.lam for p in points],
        "colorscale": style.RAMP,
        "cmin": 0,
        "cmax": 1,
        "line": {"color": style.INK, "width": 1},
        "colorbar": ramp,
    }
    trace = _trace(points, axis, "MMR over lambda", mode="lines+markers", marker=marker, line={"color": style.INK, "width": 1.5})
    return trace.update(showlegend=False)
