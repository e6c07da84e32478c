"""Methods side by side on one image: who keeps which patch, how much their choices overlap, where their answers part."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from pruning.tokens import Ranking
from viz import overlay, style

HERE = Path(__file__).resolve().parent
NEITHER, ONLY_A, ONLY_B, BOTH = range(4)
LEAST_KL = 1e-3
NOTE = (
    "Which patches do two methods agree on? Drag the slider above, and the map follows (where a method is made for one number of "
    "patches, once you let go). The matrix gives, for every pair of methods, the Jaccard overlap of what they keep: patches kept "
    "by both over patches kept by either."
)


def component() -> gr.HTML:
    """The map of two methods; its value is what :func:`payload` returns."""
    return gr.HTML(
        value=None,
        html_template=(HERE / "compare.html").read_text(),
        css_template=(HERE / "patches.css").read_text(),
        js_on_load=(HERE / "patches.js").read_text() + (HERE / "compare.js").read_text(),
        elem_id="compare-map",
        label="Two methods",
    )


def payload(picture: Image.Image, grid: tuple[int, int], a: Ranking, b: Ranking, names: tuple[str, str]) -> dict:
    """Both orders; the browser cuts them at the slider, or, where one serves a single budget, at that."""
    return {
        "image": overlay.data_url(picture),
        "rows": grid[0],
        "cols": grid[1],
        "n": len(a.order),
        "a": a.rank.tolist(),
        "b": b.rank.tolist(),
        "names": list(names),
        "budget": a.budget or b.budget,
    }


def membership(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of two bool masks [N]: NEITHER, ONLY_A, ONLY_B or BOTH, int64 [N]."""
    return a.astype(np.int64) * ONLY_A + b.astype(np.int64) * ONLY_B


def jaccard(masks: np.ndarray) -> np.ndarray:
    """Overlap of kept sets, bool [M, N] -> float64 [M, M]: |both| / |either|. Two empty sets overlap wholly."""
    numbers = masks.astype(np.float64)
    both = numbers @ numbers.T
    sizes = numbers.sum(1)
    either = sizes[:, None] + sizes[None] - both
    return np.where(either > 0, both / np.maximum(either, 1.0), 1.0)


def chance(n: int, k: int) -> float:
    """The overlap that two random sets of k of n would have: their intersection is k * k / n on average."""
    return k / (2 * n - k)


def overlaps(rankings: dict[str, Ranking], k: int) -> np.ndarray:
    """:func:`jaccard` of what the rankings of one image keep, float64 [M, M]."""
    return jaccard(np.stack([ranking.kept_mask(k) for ranking in rankings.values()]))


def overlap_headline(rankings: dict[str, Ranking], k: int) -> str:
    """How alike the methods' choices are, beside what chance would make of them."""
    n, matrix = len(next(iter(rankings.values())).order), overlaps(rankings, k)
    apart = matrix[~np.eye(len(matrix), dtype=bool)]
    if not len(apart):
        return "Choose two methods or more to compare them."
    return f"At {k} of {n} patches, two methods overlap by {apart.mean():.0%} on average; chance would give {chance(n, k):.0%}"


def overlap_figure(rankings: dict[str, Ranking], k: int) -> go.Figure:
    """The overlap matrix of all methods (key -> ranking of the same image) at ``k`` kept patches, as a heat map."""
    names = [style.name_of(key) for key in rankings]
    matrix = overlaps(rankings, k)
    fig = style.figure(110 + 46 * max(len(names), 4))
    fig.add_trace(
        go.Heatmap(
            z=matrix[::-1],
            x=names,
            y=names[::-1],
            text=[[f"{100 * v:.0f}" for v in row] for row in matrix[::-1]],
            texttemplate="%{text}",
            textfont={"size": 12},
            colorscale=style.RAMP,
            zmin=0,
            zmax=1,
            xgap=2,
            ygap=2,
            showscale=False,
            hovertemplate="%{y} and %{x}: %{z:.0%} of the patches kept by either are kept by both<extra></extra>",
        )
    )
    fig.update_xaxes(tickangle=-35, ticks="", showgrid=False)
    fig.update_yaxes(ticks="", showgrid=False)
    return fig


@dataclass(frozen=True, eq=False)
class Divergence:
    """How a pruned model's next-token distributions differ from the full one's along the full answer.

    kl: float64 [T], nats, full || pruned at each token of the full answer. leaves: the index of the first token that the pruned
    model would choose differently, or None. Up to there its own greedy answer is the full one, so it is where the answers part.
    """

    kl: np.ndarray
    leaves: int | None


def divergence(full: torch.Tensor, pruned: torch.Tensor) -> Divergence:
    """Of two logit tensors [T, V] of the same forced tokens. Raises ValueError where the shapes differ."""
    if full.shape != pruned.shape or full.ndim != 2:
        raise ValueError(f"Both must be logits [T, V] of the same tokens, got {tuple(full.shape)} and {tuple(pruned.shape)}.")
    p, q = full.double().log_softmax(-1), pruned.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    other = (full.argmax(-1) != pruned.argmax(-1)).nonzero()
    return Divergence(kl.cpu().numpy(), int(other[0, 0]) if len(other) else None)


def divergence_headline(found: dict[str, Divergence], k: int, n: int) -> str:
    """How many answers stay what they were."""
    stay = sum(d.leaves is None for d in found.values())
    return (
        f"With {k} of {n} patches {stay} of {len(found)} methods answer as the full model does; a cross marks where an answer parts"
    )


def divergence_figure(found: dict[str, Divergence], pieces: list[str]) -> go.Figure:
    """KL by token of the full answer, a row per method; a cross marks where its own answer leaves. pieces: the tokens' texts."""
    keys = list(found)[::-1]
    names, places = [style.name_of(key) for key in keys], list(range(len(pieces)))
    kl = np.stack([found[key].kl for key in keys])
    fig = style.figure(170 + 40 * len(keys), "Token of the full answer", above=62)
    fig.add_trace(
        go.Heatmap(
            # Logarithmic: a hundredth of a nat and a whole one are different things, and answers have both.
            z=np.log10(np.maximum(kl, LEAST_KL)),
            x=places,
            y=names,
            customdata=kl,
            colorscale=style.RAMP,
            zmin=np.log10(LEAST_KL),
            zmax=1,
            xgap=2,
            ygap=2,
            colorbar={
                "title": {"text": "KL divergence, nats", "side": "top", "font": {"size": 12}},
                "orientation": "h",
                "thickness": 9,
                "len": 0.8,
                "x": 0,
                "xanchor": "left",
                "y": 1.01,
                "yanchor": "bottom",
                "ypad": 2,
                "tickvals": [-3, -1, 1],
                "ticktext": ["<0.001", "0.1", ">10"],
                "tickangle": 0,
                "outlinewidth": 0,
            },
            hovertemplate="%{y}, token %{x}: %{customdata:.3g} nats from the full model<extra></extra>",
        )
    )
    leaving = [(found[key].leaves, name) for key, name in zip(keys, names, strict=True) if found[key].leaves is not None]
    mark = {"symbol": "x", "size": 13, "color": style.ACCENT, "line": {"color": "#fff", "width": 1.5}}
    x, y = [token + 0.3 for token, _ in leaving], [name for _, name in leaving]
    said = "%{y} answers differently from here on<extra></extra>"
    fig.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=mark, showlegend=False, hovertemplate=said))
    fig.update_xaxes(tickvals=places, ticktext=[repr(piece)[1:-1] or "(end)" for piece in pieces], tickangle=-45, showgrid=False)
    fig.update_yaxes(ticks="", showgrid=False)
    return fig
