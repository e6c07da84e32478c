"""Where reading fewer bits pays: committed measurements of decode attention as a map of context and geometry.

assets/results/kv_attention.json holds {"where": str, "rows": [{"context": int, "query_heads": int, "kv_heads": int, "head_dim":
int, "milliseconds": {path: median}}]}. Paths whose names begin with "sdpa" are PyTorch's; those that begin with "certified" or
"paper" read fewer bits.
"""

from __future__ import annotations

import json
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


@dataclass(frozen=True)
class Regime:
    """One measured case: the fastest SDPA's time over that of the fastest reading of fewer bits; above 1, fewer bits pay."""

    context: int
    geometry: str
    ratio: float
    detail: str


def regimes(path: Path = COMMITTED) -> tuple[list[Regime], str]:
    """(the committed cases, where they were measured), none where the file is missing or of another kind."""
    try:
        found = json.loads(path.read_text())
        return [_of(row) for row in found["rows"]], str(found["where"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return [], ""


def _of(row: dict) -> Regime:
    times = {name: float(value) for name, value in row["milliseconds"].items()}
    theirs = min((value, name) for name, value in times.items() if name.startswith("sdpa"))
    ours = min((value, name) for name, value in times.items() if name.startswith(("certified", "paper")))
    geometry = f"{row['query_heads']}/{row['kv_heads']} x {row['head_dim']}"
    return Regime(int(row["context"]), geometry, theirs[0] / ours[0], f"{theirs[1]} {theirs[0]:.3g} ms, {ours[1]} {ours[0]:.3g} ms")


def regime_figure(found: list[Regime], where: str) -> go.Figure:
    """A map of ratios: contexts across, geometries down; at least one case."""
    contexts = sorted({regime.context for regime in found})
    geometries = sorted({regime.geometry for regime in found})
    cells = {(regime.geometry, regime.context): regime for regime in found}
    table = [[cells.get((geometry, context)) for context in contexts] for geometry in geometries]
    won = sum(regime.ratio > 1 for regime in found)
    chart = figure(
        f"Reading fewer bits was faster than the fastest SDPA in {won} of {len(found)} cases, on {where}.",
        60 * len(geometries) + 40,
    )
    chart.add_heatmap(
        z=[[cell.ratio if cell else None for cell in row] for row in table],
        x=[f"{context:,}" for context in contexts],
        y=geometries,
        text=[[f"{cell.ratio:.2f}x" if cell else "" for cell in row] for row in table],
        texttemplate="%{text}",
        customdata=[[cell.detail if cell else "" for cell in row] for row in table],
        hovertemplate="%{y}, %{x} tokens: %{text}<br>%{customdata}<extra></extra>",
        colorscale=RATIO_SCALE,
        zmin=0,
        zmax=2,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    chart.update_xaxes(title_text="tokens of context", type="category", showgrid=False)
    chart.update_yaxes(title_text="query / KV heads x dimension", type="category", automargin=True, showgrid=False)
    return chart
