"""Why a patch was kept or dropped: the two terms of MMR at the step that decided it, in numbers, in words and as marks."""

from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from pruning.registry import Method
from pruning.selectors import MMR, FarthestPoint, TopK
from pruning.tokens import Ranking
from viz import overlay

HERE = Path(__file__).resolve().parent
NOTE = "Click a patch: the step of the greedy selection that decided about it is taken apart."


@dataclass(frozen=True)
class Reason:
    """One patch at the step that decided about it: its own if it was kept, the last one if it was not.

    step counts picks from 1. importance_term: lam * importance; redundancy_term: (1 - lam) * cosine to ``nearest``, the kept
    patch most like it, None at the first step; gain: their difference. rival: who took that step, with its importance and gain.
    importance_rank: the place by importance alone, from 1.
    """

    token: int
    kept: bool
    step: int
    importance: float
    importance_rank: int
    importance_term: float
    nearest: int | None
    cosine: float
    redundancy_term: float
    gain: float
    rival: int
    rival_importance: float
    rival_gain: float


def lambda_of(method: Method) -> float | None:
    """The lambda under which a method is MMR: its own, 1 for any top-k, 0 for farthest point; None for all others."""
    if type(method.selector) is MMR:
        return method.selector.lam
    return {TopK: 1.0, FarthestPoint: 0.0}.get(type(method.selector))


def explain(cosine: np.ndarray, ranking: Ranking, lam: float, k: int, token: int) -> Reason:
    """The deciding step of a patch when ``k`` are kept. cosine: [N, N]. Raises ValueError for a patch that is not there."""
    n = len(ranking.order)
    if not 0 <= token < n:
        raise ValueError(f"There are {n} patches; there is no number {token + 1}.")
    rank = int(ranking.rank[token])
    step = min(rank, k - 1)
    before, rival = ranking.order[:step], int(ranking.order[step])

    def terms(i: int) -> tuple[float, float, int | None, float]:
        nearest = int(before[cosine[i, before].argmax()]) if step else None
        alike = 0.0 if nearest is None else float(cosine[i, nearest])
        return lam * float(ranking.importance[i]), (1 - lam) * alike, nearest, alike

    wanted, redundant, nearest, alike = terms(token)
    rival_wanted, rival_redundant, _, _ = terms(rival)
    return Reason(
        token=token,
        kept=rank < k,
        step=step + 1,
        importance=float(ranking.importance[token]),
        importance_rank=int((ranking.importance > ranking.importance[token]).sum()) + 1,
        importance_term=wanted,
        nearest=nearest,
        cosine=alike,
        redundancy_term=redundant,
        gain=wanted - redundant,
        rival=rival,
        rival_importance=float(ranking.importance[rival]),
        rival_gain=rival_wanted - rival_redundant,
    )


def place(token: int, columns: int) -> str:
    """Row and column, from 1."""
    return f"row {token // columns + 1}, column {token % columns + 1}"


def words(reason: Reason, lam: float, k: int, n: int, columns: int) -> str:
    """The reason as HTML: a verdict, the sum, and what spoke against the patch."""
    r = reason
    verdict = f"kept, as number {r.step}" if r.kept else f"dropped: {k} of {n} are kept, and it was never the best"
    lines = [f"<p><b>The patch at {place(r.token, columns)} is {verdict}.</b></p>"]
    if r.nearest is None:
        own = "" if r.kept else f"; this one has {r.importance:.2f}"
        lines.append(f"<p>The first pick is the most important patch: importance {r.rival_importance:.2f}{own}.</p>")
        return "".join(lines)
    lines.append(
        f"<table><tr><td>importance</td><td>{lam:g} x {r.importance:.3f}</td><td>{r.importance_term:+.3f}</td></tr>"
        f"<tr><td>redundancy</td><td>{1 - lam:g} x {r.cosine:.3f}</td><td>{-r.redundancy_term:+.3f}</td></tr>"
        f"<tr><td><b>gain at step {r.step}</b></td><td></td><td><b>{r.gain:+.3f}</b></td></tr>"
        + ("" if r.kept else f"<tr><td>gain of the patch that was kept instead</td><td></td><td>{r.rival_gain:+.3f}</td></tr>")
        + "</table>"
    )
    lines.append(
        f"<p>The kept patch most like it, at {place(r.nearest, columns)}, has cosine {r.cosine:.3f} to it. "
        f"By importance alone it would be number {r.importance_rank} of {n}{_alone(r, k)}.</p>"
    )
    return "".join(lines)


def _alone(reason: Reason, k: int) -> str:
    """What top-k would have done, where it differs."""
    by_importance = reason.importance_rank <= k
    if by_importance and not reason.kept:
        return " and kept: its redundancy cost it its place"
    return " and dropped: what it adds saved it" if reason.kept and not by_importance else ""


def unexplained(method: Method) -> str:
    """What is said where a method does not weigh importance against redundancy."""
    return f"<p>{escape(method.label)} does not weigh importance against redundancy; choose IDPruner to see it do so.</p>"


def component() -> gr.HTML:
    """The map on which a patch is chosen; its value is what :func:`payload` returns, its event ``pick`` names a patch."""
    return gr.HTML(
        value=None,
        html_template=(HERE / "reasons.html").read_text(),
        css_template=(HERE / "patches.css").read_text(),
        js_on_load=(HERE / "patches.js").read_text() + (HERE / "reasons.js").read_text(),
        elem_id="reason-map",
        label="Why this patch",
    )


def payload(picture: Image.Image, grid: tuple[int, int], ranking: Ranking, k: int, reason: Reason | None) -> dict:
    """The picture, the kept set, and the marks of a reason."""
    return {
        "image": overlay.data_url(picture),
        "rows": grid[0],
        "cols": grid[1],
        "n": len(ranking.order),
        "rank": ranking.rank.tolist(),
        "kept": k,
        "reason": None if reason is None else asdict(reason),
    }
