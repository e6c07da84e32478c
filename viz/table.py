"""The comparison table: what every method keeps of the unpruned accuracy, and what it costs; from the committed measurement."""

import json
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import plotly.graph_objects as go

from viz import style

RESULTS = Path(__file__).resolve().parent.parent / "assets" / "results"
# Few methods asked much; many asked less, and timed.
FILES = ("headline_4500.json", "headline.json")
MISSING = (
    "This table has not been measured yet for the weights that ship: `python -m bench.headline --methods all --prune 0.5 0.75 0.9 "
    "--cost --out assets/results/headline.json` writes it, in hours on two cores; it goes on where it was stopped."
)
AXES = {"tokens": "Tokens kept (%)", "first_token": "Time to first token (ms)"}
NAMES = {"mmr training-free": "MMR, training-free score"}


@dataclass(frozen=True)
class Table:
    """The components: which measurement, which share is pruned, the rows, the plot and its axis, and what is said above."""

    said: gr.Markdown
    source: gr.Radio
    share: gr.Radio
    rows: gr.Dataframe
    axis: gr.Radio
    plot: gr.Plot


def load(path: Path) -> dict | None:
    """The record that a bench's ``--out`` wrote, or None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def records() -> dict[str, dict]:
    """The measurements that are there, by their file's name."""
    found = {name: load(RESULTS / name) for name in FILES}
    return {name: record for name, record in found.items() if record}


def label(record: dict) -> str:
    """A measurement in a few words."""
    return f"{record['n']:,} questions, {len(record['kept'])} methods{', with times and memory' * ('cost' in record)}"


def name_of(key: str) -> str:
    """A method's name."""
    return NAMES.get(key) or style.name_of(key)


def shares(record: dict) -> list[str]:
    """The pruned shares that were measured, ascending."""
    return sorted({share for by_share in record["kept"].values() for share in by_share}, key=float)


def said(record: dict) -> str:
    """How the table was measured, in a sentence."""
    times = " Times: medians over eight pictures, on the cores of that run." if "cost" in record else ""
    return (
        f"What {len(record['kept'])} methods keep of the unpruned accuracy ({record['mean']:.1f}% on nine tasks, {record['n']:,} "
        f"questions, seed {record['seed']}, commit {style.commit_of(record)}, {record['dtype']}): the mean over tasks of pruned / "
        f"unpruned, with bootstrap 95% intervals over the same questions.{times} Click a heading to sort."
    )


def head(record: dict) -> list[str]:
    """The columns' names."""
    costs = ["scoring ms", "selection ms", "first token ms", "peak MB"] if "cost" in record else []
    return ["method", "kept %", "from", "to", *_tasks(record["unpruned"]), *costs]


def rows(record: dict, share: str) -> list[list]:
    """All tokens, then one row a method, the best first; a task's column is its accuracy in %."""
    out = []
    for key, kept in record["kept"].items():
        if share not in kept:
            continue
        low, high = record["interval"][key][share]
        cost = record.get("cost", {}).get(key, {}).get(share)
        out.append([name_of(key), kept[share], low, high, *_tasks(record["pruned"][key][share]).values(), *_spent(record, cost)])
    tasks = _tasks(record["unpruned"]).values()
    full = [name_of("none"), 100.0, None, None, *tasks, *_spent(record, record.get("cost", {}).get("none", {}).get("0"))]
    return [full, *sorted(out, key=lambda row: -row[1])]


def _tasks(by_task: dict[str, float]) -> dict[str, float]:
    """Those that the mean is of."""
    return {task: value for task, value in by_task.items() if task != "unseen naming"}


def _spent(record: dict, cost: dict | None) -> list:
    if cost is None:
        return [None] * 4 if "cost" in record else []
    return [cost["scoring"], cost["selection"], cost["first_token"], None if cost["peak"] is None else round(cost["peak"] / 1e6, 1)]


def figure(record: dict, axis: str) -> go.Figure:
    """Accuracy kept against tokens kept or the time to the first token; a line a method. Raises ValueError for another axis."""
    if axis not in AXES:
        raise ValueError(f"Unknown axis '{axis}'. Known: {', '.join(AXES)}.")
    fig = style.figure(460, AXES[axis], "Accuracy kept (%)")
    # Beneath the axis, two names a row on a narrow page; beside it the plot would have half of that page.
    foot = 60 + 20 * (len(record["kept"]) + 2) // 2
    legend = {"orientation": "h", "x": 0, "y": -64 / 400, "yanchor": "top"}
    fig.update_layout(height=410 + foot, margin_b=foot, legend=legend)
    for key, kept in record["kept"].items():
        cost = record.get("cost", {}).get(key, {})
        at = [share for share in sorted(kept, key=float) if axis == "tokens" or share in cost]
        x = [100 * (1 - float(share)) if axis == "tokens" else cost[share]["first_token"] for share in at]
        if not x:
            continue
        low, high = zip(*(record["interval"][key][share] for share in at), strict=True)
        y = [kept[share] for share in at]
        fig.add_trace(
            go.Scatter(
                x=x,
                y=y,
                name=name_of(key),
                mode="lines+markers",
                error_y=style.error_bars(y, low, high),
                line={"color": style.color_of(key), "width": 3 if key == "idpruner" else 1.5},
                hovertemplate="%{fullData.name}<br>%{y:.1f}% kept<extra></extra>",
            )
        )
    full = record.get("cost", {}).get("none", {}).get("0")
    if axis == "tokens" or full:
        x = 100 if axis == "tokens" else full["first_token"]
        name, marker = name_of("none"), {"color": style.INK, "symbol": "star", "size": 11}
        fig.add_trace(go.Scatter(x=[x], y=[100], name=name, mode="markers", marker=marker, hovertemplate=f"{name}<extra></extra>"))
    return fig


def build() -> Table:
    """The tab's components, in this order; filled by :func:`fill` when the tab is opened."""
    found = records()
    record = next(iter(found.values()), None)
    return Table(
        gr.Markdown(said(record) if record else MISSING, elem_id="table-said"),
        gr.Radio(
            [(label(record), name) for name, record in found.items()],
            value=next(iter(found), None),
            show_label=False,
            visible=len(found) > 1,
            elem_id="table-source",
        ),
        _share(record) if record else gr.Radio(visible=False),
        gr.Dataframe(interactive=False, visible=bool(found), elem_id="table-rows", show_label=False),
        _axis(record) if record else gr.Radio(visible=False),
        gr.Plot(show_label=False, visible=bool(found), elem_id="table-plot"),
    )


def choose(source: str) -> tuple[str, gr.Radio, gr.Radio]:
    """What is said of a measurement, the shares that it has, and what its plot can be drawn against."""
    record = records()[source]
    return said(record), _share(record), _axis(record)


def _share(record: dict) -> gr.Radio:
    there = shares(record)
    choices = [(f"{float(share):.0%} pruned", share) for share in there]
    return gr.Radio(choices, value=there[len(there) // 2], show_label=False, elem_id="table-share")


def _axis(record: dict) -> gr.Radio:
    """Without measured costs there is one axis only."""
    axes = [(text, key) for key, text in AXES.items()]
    return gr.Radio(axes, value="tokens", label="Against", visible="cost" in record)


def fill(source: str | None, share: str | None, axis: str) -> tuple:
    """The rows and the plot, or nothing where nothing was measured."""
    record = records().get(source)
    if record is None or share not in shares(record):
        return gr.skip(), gr.skip()
    return gr.Dataframe(rows(record, share), headers=head(record)), figure(record, axis if "cost" in record else "tokens")
