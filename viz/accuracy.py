"""Accuracy along lambda, from the committed measurement: whether the trade-off of importance and diversity predicts answers."""

from itertools import cycle
from pathlib import Path

import plotly.graph_objects as go

from pruning.registry import SCORERS
from pruning.tradeoff import MIDDLE
from viz import style, table

FILE = Path(__file__).resolve().parent.parent / "assets" / "results" / "tradeoff.json"
MISSING = (
    "How many answers are right at each lambda has not been measured yet for these weights: `python -m bench.tradeoff --suite`."
)
# At lambda 0 and 1 the curve is the other two of the bench, farthest point and top-k.
BESIDE = ("uniform", "random")
UNPRUNED = "#22a06b"  # grey is random's


def load(path: Path = FILE) -> dict | None:
    """The record that ``bench.tradeoff --out`` wrote, or None where there is none."""
    return table.load(path)


def drawn() -> go.Figure | None:
    """The figure of the committed measurement, or None where there is none."""
    record = load()
    return figure(record) if record else None


def _curve(of_share: dict) -> list[dict]:
    return [point for point in of_share["points"] if point["method"] == "idpruner"]


def title(record: dict) -> str:
    """What the figure shows, counted: the best lambda of each share, and which differ from the middle one on the same questions."""
    said = []
    for share, of_share in record["prune"].items():
        curve = _curve(of_share)
        best = max(curve, key=lambda p: p["mean"])
        middle = min(curve, key=lambda p: abs(p["lam"] - MIDDLE))
        sides = {"better": [p["lam"] for p in curve if p["ahead"][0] > 0], "worse": [p["lam"] for p in curve if p["ahead"][1] < 0]}
        which = ", ".join(f"{side} {', '.join(f'{lam:g}' for lam in lams) or 'none'}" for side, lams in sides.items())
        at = f"best at lambda {best['lam']:g} ({best['mean']:.1f}% right)"
        said.append(f"{float(share):.0%} pruned: {at}; than lambda {middle['lam']:g}, beyond the paired 95% interval: {which}")
    return ". ".join(said)


def note(record: dict) -> str:
    """How it was measured, and what goes with accuracy over the lambdas."""
    words = {"retention": "importance retained", "hopkins": "the Hopkins statistic", "coverage": "coverage"}
    found = []
    for share, of_share in record["prune"].items():
        known = [
            f"{word} {of_share['spearman'][key]:+.2f}" for key, word in words.items() if of_share["spearman"].get(key) is not None
        ]
        found.append(f"{float(share):.0%} pruned: {', '.join(known) or 'none can be said'}")
    return (
        f"{record['n']:,} held-out questions, seed {record['seed']}, importance: {SCORERS[record['scorer']].label}; commit "
        f"{style.commit_of(record)}; bars are 95% bootstrap intervals. The paper draws importance "
        f"against diversity and leaves accuracy out. Rank correlation of accuracy, over the lambdas, with {'; '.join(found)}."
    )


def figure(record: dict) -> go.Figure:
    """x: lambda, y: accuracy in %, a line per pruned share; methods without lambda as level lines, the full model on top."""
    fig = style.figure(400, "Lambda: diversity (0) to importance (1)", "Right answers (%)")
    fig.update_layout(height=500, margin_b=160, legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"})
    for dash, (share, of_share) in zip(cycle(("solid", "dot", "dash")), record["prune"].items(), strict=False):
        curve = _curve(of_share)
        y = [p["mean"] for p in curve]
        low, high = zip(*(p["interval"] for p in curve), strict=True)
        fig.add_trace(
            go.Scatter(
                x=[p["lam"] for p in curve],
                y=y,
                name=f"MMR, {float(share):.0%} pruned",
                mode="lines+markers",
                error_y=style.error_bars(y, low, high),
                line={"color": style.ACCENT, "width": 2.5, "dash": dash},
                customdata=[[p["retention"], p["hopkins"]] for p in curve],
                hovertemplate="lambda %{x}: %{y:.1f}%<br>I %{customdata[0]:.1%}, H %{customdata[1]:.3f}<extra></extra>",
            )
        )
        for point in (p for p in of_share["points"] if p["method"] in BESIDE):
            fig.add_trace(_level(point, f"{style.name_of(point['method'])}, {float(share):.0%} pruned", dash))
    fig.add_trace(_level(record["unpruned"] | {"method": "none"}, "All tokens", "longdash"))
    return fig


def _level(point: dict, name: str, dash: str) -> go.Scatter:
    """A line at one height: what has no lambda."""
    color = UNPRUNED if point["method"] == "none" else style.color_of(point["method"])
    line = {"color": color, "width": 1.5, "dash": dash}
    return go.Scatter(
        x=[0, 1],
        y=[point["mean"]] * 2,
        name=name,
        mode="lines",
        line=line,
        hovertemplate="%{y:.1f}%<extra>%{fullData.name}</extra>",
    )
