"""The live overlay: one ``gr.HTML`` that gets every patch's rank and importance once and is cut in the browser."""

import base64
import hashlib
import io
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image

from pruning.tokens import Ranking

HERE = Path(__file__).resolve().parent
# The full cosine matrix is a byte per pair: 1 MB at 1024 tokens, the largest image of the page.
MOST_SIMILARITIES = 1024


def component() -> gr.HTML:
    """An empty overlay; its value is what :func:`payload` returns."""
    return gr.HTML(
        value=None,
        html_template=(HERE / "overlay.html").read_text(),
        css_template=(HERE / "overlay.css").read_text(),
        js_on_load=(HERE / "overlay.js").read_text(),
        elem_id="overlay",
        label="Patches",
    )


def payload(
    picture: Image.Image,
    features: torch.Tensor,
    grid: tuple[int, int],
    ranking: Ranking,
    title: str,
    scorer: str,
    whole: bool = False,
) -> dict:
    """What the browser needs to cut, colour and explain every patch.

    Args:
        picture: RGB, as the model sees it.
        features: [N, D] visual tokens, for the cosine to the nearest kept patch.
        grid: (rows, columns) with rows * columns == N.
        title: the method in words; scorer: what "importance" means here.
        whole: nothing is dropped, the picture itself is smaller; no patch is then drawn as pruned.
    """
    rows, columns = grid
    value = {
        "image": data_url(picture),
        "rows": rows,
        "cols": columns,
        "n": len(ranking.order),
        "rank": ranking.rank.tolist(),
        "importance": np.round(ranking.importance, 4).tolist(),
        "similarity": similarity_bytes(features) if len(features) <= MOST_SIMILARITIES else "",
        "method": ranking.method,
        "title": title,
        "scorer": scorer,
        "whole": whole,
    }
    value["id"] = hashlib.sha256(repr((value["image"], value["rank"], value["importance"], title)).encode()).hexdigest()[:16]
    return value


def data_url(picture: Image.Image) -> str:
    """The picture as a JPEG data URL (JPEG: it is encoded twenty times faster than WebP)."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def similarity_bytes(features: torch.Tensor) -> str:
    """Cosines of all pairs, [N * N] bytes in base64: -1 is 0 and 1 is 255."""
    units = torch.nn.functional.normalize(features.float(), dim=-1)
    cosine = (units @ units.T).clamp(-1, 1)
    return base64.b64encode(((cosine + 1) * 127.5).round().byte().cpu().numpy().tobytes()).decode()
