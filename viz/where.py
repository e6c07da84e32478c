"""Where a method is ahead of its rivals and where it is not, by ground and by task; from the committed measurement."""

from pathlib import Path
from statistics import NormalDist

import gradio as gr
import plotly.graph_objects as go

from viz import style, table

FILE = Path(__file__).resolve().parent.parent / "assets" / "results" / "where.json"
MISSING = "On which pictures and tasks it wins has not been measured yet for these weights: `python -m bench.where`."
ROW = 44  # pixels a group
NORMAL = NormalDist()
HOVER = "%{x:+.1f} points: %{customdata[0]:.1f}% and %{customdata[1]:.1f}% kept<extra>%{fullData.name}</extra>"


def load(path: Path = FILE) -> dict | None:
    """The record that ``bench.where --out`` wrote, or None where there is none."""
    return table.load(path)


def together(lead: dict, comparisons: int) -> bool:
    """Whether a lead is still none of chance when so many are looked at, at 95% for all of them (Sidak; normal errors)."""
    (low, high), size = lead["interval"], lead["lead"]
    wider = NORMAL.inv_cdf(0.5 + 0.95 ** (1 / comparisons) / 2) / NORMAL.inv_cdf(0.975)
    return abs(size) > wider * (size - low if size > 0 else high - size)


def title(record: dict, share: str) -> str:
    """Counted: in how many groups the method is ahead of, and behind, each rival outside the interval; named: what is no chance."""
    groups, others = record["prune"][share], rivals(record, share)
    said, sure = [], []
    for rival in others:
        found = {name: group["rivals"][rival] for name, group in groups.items()}
        ahead, behind = (sum(side * lead["interval"][side < 0] > 0 for lead in found.values()) for side in (1, -1))
        said.append(f"{table.name_of(rival)}: ahead in {ahead}, behind in {behind}")
        kept = [(name, lead) for name, lead in found.items() if together(lead, len(groups) * len(others))]
        sure += [f"{name} ({lead['lead']:+.1f} over {table.name_of(rival)})" for name, lead in kept]
    count = f"With all {len(groups) * len(others)} comparisons at once, "
    holds = f"what holds is {', '.join(sure)}" if sure else "none holds"
    return (
        f"{float(share):.0%} pruned: where {style.name_of(record['method'])} wins, in {len(groups)} groups of questions. Against "
        f"{'; '.join(said)}. {count}{holds}"
    )


def note(record: dict) -> str:
    """How it was measured."""
    return (
        f"{record['n']:,} held-out questions, seed {record['seed']}, commit {style.commit_of(record)}, {record['dtype']}: what is "
        "kept of the unpruned accuracy, less what the rival keeps; bars are paired 95% bootstrap intervals, each by itself. One "
        "that crosses 0 tells nothing, and of so many one or two miss it by chance: filled marks are those that hold together. "
        "What a scene stands on comes first: all tasks but charts and documents."
    )


def rivals(record: dict, share: str) -> list[str]:
    """Who was compared."""
    return list(next(iter(record["prune"][share].values()))["rivals"])


def figure(record: dict, share: str) -> go.Figure:
    """y: groups, x: lead in points with its interval, a colour a rival. Raises KeyError for a share that was not measured."""
    groups = record["prune"][share]
    names, others = list(groups), rivals(record, share)
    fig = style.figure(ROW * len(names) + 130, "Lead (points)")
    ticks = [f"{name} ({found['n']:,})" for name, found in groups.items()]
    fig.update_yaxes(tickvals=list(range(len(names))), ticktext=ticks, range=[len(names) - 0.5, -0.5], ticks="")
    fig.update_xaxes(zeroline=True, zerolinecolor=style.INK, zerolinewidth=1.5)
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}, margin_t=56)
    for place, rival in enumerate(others):
        found = [group["rivals"][rival] for group in groups.values()]
        lead = [one["lead"] for one in found]
        low, high = zip(*(one["interval"] for one in found), strict=True)
        fig.add_trace(
            go.Scatter(
                x=lead,
                y=[row + 0.24 * (place - (len(others) - 1) / 2) for row in range(len(names))],
                name=f"over {table.name_of(rival)}",
                mode="markers",
                marker={
                    "color": style.color_of(rival),
                    "size": 9,
                    "symbol": ["circle" if together(one, len(names) * len(others)) else "circle-open" for one in found],
                },
                error_x=style.error_bars(lead, low, high),
                customdata=[[group["kept"], one["kept"]] for group, one in zip(groups.values(), found, strict=True)],
                hovertemplate=HOVER,
            )
        )
    return fig


def build() -> tuple[gr.HTML, gr.Plot]:
    """The title and the plot, which :func:`fill` fills, and what is said beneath."""
    record = load()
    parts = gr.HTML(elem_id="where-title"), gr.Plot(show_label=False, visible=bool(record), elem_id="where-plot")
    gr.Markdown(note(record) if record else MISSING, elem_id="where-note")
    return parts


def fill(share: str | None) -> tuple:
    """Title and plot at a pruned share; where it was not measured, a sentence and no plot."""
    record = load()
    if record is None or share is None:
        return gr.skip(), gr.skip()
    if share not in record["prune"]:
        there = " and ".join(f"{float(other):.0%}" for other in record["prune"])
        return style.headline(f"Where it wins was measured at {there} pruned."), gr.Plot(visible=False)
    return style.headline(title(record, share)), gr.Plot(figure(record, share), visible=True)
