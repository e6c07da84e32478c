"""The visual tokens where the model has them, in feature space: two principal components, every token drawn as its patch."""

import hashlib
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA

from pruning.tokens import Ranking
from viz import overlay

HERE = Path(__file__).resolve().parent
NOTE = (
    "Each patch stands where the language model has it: the two directions in which this picture's visual tokens differ most "
    "(PCA). Framed patches are kept. The axes stay as they are while you drag the slider above; point at a patch here or there, "
    "and it is marked in both."
)


def component() -> gr.HTML:
    """An empty feature map; its value is what :func:`payload` returns."""
    return gr.HTML(
        value=None,
        html_template=(HERE / "features.html").read_text(),
        css_template=(HERE / "patches.css").read_text() + ".tl-stage { max-width: 760px; }",
        js_on_load=(HERE / "patches.js").read_text() + (HERE / "features.js").read_text(),
        elem_id="feature-map",
        label="Feature space",
    )


def project(features: torch.Tensor, units: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Two principal components of features [N, D]: coordinates float64 [N, 2] and the explained shares of variance [2].

    units: of the directions alone, which is what a cosine sees. Fewer than two dimensions or tokens leave zeros.
    """
    rows = torch.nn.functional.normalize(features.float(), dim=-1) if units else features.float()
    rows = rows.cpu().double().numpy()
    places, shares = np.zeros((len(rows), 2)), np.zeros(2)
    parts = min(2, *rows.shape)
    # All alike has no direction to show, and scikit-learn would divide by a variance of zero.
    if np.ptp(rows, axis=0).max() > 0:
        pca = PCA(parts, svd_solver="full")
        places[:, :parts] = pca.fit_transform(rows)
        shares[:parts] = pca.explained_variance_ratio_
    return places, shares


def payload(picture: Image.Image, features: torch.Tensor, grid: tuple[int, int], ranking: Ranking) -> dict:
    """What the browser needs to draw and to cut: coordinates scaled to -1..1, ranks, importance, shares of variance."""
    places, shares = project(features)
    scaled = places / max(float(np.abs(places).max()), 1e-12)
    value = {
        "image": overlay.data_url(picture),
        "rows": grid[0],
        "cols": grid[1],
        "n": len(places),
        "x": np.round(scaled[:, 0], 4).tolist(),
        "y": np.round(scaled[:, 1], 4).tolist(),
        "rank": ranking.rank.tolist(),
        "budget": ranking.budget,
        "explained": [round(float(share), 4) for share in shares],
    }
    value["id"] = hashlib.sha256(repr(value).encode()).hexdigest()[:16]
    return value
