"""What all figures share: the colours of the methods, a look that reads on the light page and on the dark one, titles."""

from html import escape

import plotly.graph_objects as go

from pruning.registry import METHODS

# Between black and white: readable on the light page and on the dark one.
INK = "#768397"
GRID = "rgba(127,140,160,0.22)"
ACCENT = "#ff8a1f"
UNUSED = ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
RAMP = [[0, "rgb(68,1,84)"], [0.25, "rgb(59,82,139)"], [0.5, "rgb(33,145,140)"], [0.75, "rgb(94,201,98)"], [1, "rgb(253,231,37)"]]
COLORS = {
    "topk": "#3b82f6",
    "farthest": "#22a06b",
    "dpp": "#c06bd6",
    "topk-farthest": "#e8579a",
    "random": "#7c8aa5",
    "uniform": "#a07a4f",
    "idpruner": ACCENT,
    "mmr training-free": "#e0b000",
}
# One for each of the others, so that no two lines of the table's plot look the same.
SPARE = (
    *("#57606f", "#5b21b6", "#0891b2", "#b45309", "#7c3aed", "#65a30d", "#be123c"),
    *("#0f766e", "#ef4444", "#4f46e5", "#9d174d", "#15803d", "#06b6d4"),
)
# Shorter than the registry's.
LABELS = {"topk-farthest": "Naive hybrid", "dpp": "DPP", "idpruner": "MMR (IDPruner)", "mean-query": "Mean-query attention"}


def name_of(key: str) -> str:
    """A method's name, short enough for a legend."""
    if key in LABELS:
        return LABELS[key]
    return METHODS[key].label.split(":")[0] if key in METHODS else key


def commit_of(record: dict) -> str:
    """The commit that a record was made at, short; "+" where files differed from it."""
    commit = record.get("commit") or "unknown"
    return commit[:7] + "+" * commit.endswith("+")


def color_of(key: str) -> str:
    """A method's colour; the same on every figure."""
    known = [other for other in METHODS if other not in COLORS]
    return COLORS.get(key) or SPARE[known.index(key) % len(SPARE) if key in known else 0]


def headline(text: str) -> str:
    """A figure's title as HTML above it: plotly would neither wrap it nor follow the page's theme."""
    return f'<h4 style="margin: .4rem 0 .2rem; line-height: 1.35">{escape(text)}</h4>' if text else ""


def error_bars(y: list[float], low: list[float], high: list[float]) -> dict:
    """A trace's ``error_y`` for the intervals from ``low`` to ``high`` about y."""
    above, below = ([a - b for a, b in zip(*pair, strict=True)] for pair in ((high, y), (y, low)))
    return {"array": above, "arrayminus": below, "thickness": 1}


def figure(height: int, x: str = "", y: str = "", above: int = 8) -> go.Figure:
    """An empty figure with the page's look; x and y title the axes, ``above`` pixels stay free over the plot."""
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "ticks": "outside", "tickcolor": GRID, "automargin": True}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "margin": {"l": 60, "r": 14, "t": above, "b": 50},
            "font": {"color": INK, "size": 13, "family": "system-ui, sans-serif"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "hoverlabel": {"font": {"size": 13}, "align": "left"},
            "dragmode": False,
            "modebar": {"remove": UNUSED, "bgcolor": "rgba(0,0,0,0)", "color": INK},
            "xaxis": axis | {"title": {"text": x, "font": {"size": 13}}},
            "yaxis": axis | {"title": {"text": y, "font": {"size": 13}}},
        }
    )
