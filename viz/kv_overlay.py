"""The bits laid over the picture: one ``gr.HTML`` that gets every step's bits once; steps and layers are chosen in the browser."""

from __future__ import annotations

import base64
import hashlib
import zlib
from pathlib import Path

import gradio as gr
import numpy as np

from kvquant.modes import Paper
from viz.kv_run import Run
from viz.overlay import data_url

HERE = Path(__file__).resolve().parent
# Bits travel in eighths of a bit, one byte each: an average over channels is no whole number.
SCALE = 8


def component() -> gr.HTML:
    """Empty and invisible until its value is a :func:`payload`."""
    return gr.HTML(
        value=None,
        html_template=(HERE / "kv_overlay.html").read_text(),
        css_template=(HERE / "kv_overlay.css").read_text(),
        js_on_load=(HERE / "kv_overlay.js").read_text(),
        elem_id="kv-overlay",
        label="Bits over the picture",
    )


def payload(run: Run) -> dict:
    """What the browser needs to show the bits of the kept patches at every step, in every layer and head.

    bits: the deflated bytes [S, 2, layers, KV heads, kept patches], in base64; patch: the kept patches; place: their tokens'
    places in the cache; words: the answer's tokens, of which step s writes number ``first`` + s.
    """
    visual = np.flatnonzero(run.patch >= 0)
    seen = np.clip(np.rint(run.bits[..., visual].astype(np.float32) * SCALE), 0, 255).astype(np.uint8)
    packed = base64.b64encode(zlib.compress(seen.tobytes(), 6)).decode()
    written = run.words[len(run.patch) :]
    value = {
        "image": data_url(run.picture),
        "rows": run.grid[0],
        "cols": run.grid[1],
        "steps": run.steps,
        "layers": run.bits.shape[2],
        "heads": run.bits.shape[3],
        "patch": run.patch[visual].tolist(),
        "place": visual.tolist(),
        "planed": run.planed.tolist(),
        "words": written,
        "first": len(written) - run.steps,
        "channels": isinstance(run.setting.mode, Paper),
        "bits": packed,
    }
    value["id"] = hashlib.sha256(repr(value).encode()).hexdigest()[:16]
    return value
