"""The tab "Trim bits": its components. What its buttons do is in viz.kv_events, the wiring in app.py."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import gradio as gr

from kvquant.modes import Certified
from viz import kv_events, kv_overlay, kv_regimes, kv_run, kv_speed

INTRO = """### How precisely must the KV cache be read?
At every step of an answer the language model reads the keys and values of all tokens before. Most of their bits cannot change the
result. This tab asks the first tab's question about its picture again and reads only the bits that matter. **Planes save reading,
not memory**: every bit stays stored, and can be read when it is needed."""
CRITERION = """Addends of a sum deserve the same *absolute* precision: a bit below the last bit of the largest addend (or of the
result) is lost in the sum. These are real queries, keys and values of the answer above, as the paper's rule sees them: 12 of 16
bits are read where 4 are wasted, 8 where 8 are, none where all 11 of a half are (the last from its authors' later code)."""
ERRORS = """The answer's own tokens are forced through caches that read differently, and every next-token distribution is
compared with the model's usual cache; then single attention outputs are compared with float64. One answer is an illustration, not a
benchmark."""
TOLERANCES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SPEED = """One layer's decode attention on the machine that serves this page, on synthetic numbers. Whatever else runs on this
machine makes it slower. Where a query attends evenly the output is small, and a certified relative error takes nearly all bits."""
NOT_TIMED = "Nothing has been timed here yet. On a new machine the first time compiles the kernels, which takes about a minute."


@dataclass
class Tab:
    """The components of the tab, by what they hold."""

    mode: gr.Radio
    error: gr.Dropdown
    window: gr.Slider
    prune: gr.Checkbox
    go: gr.Button
    stop: gr.Button
    status: gr.HTML
    run: gr.State
    results: gr.Column
    overlay: gr.HTML
    heat: gr.Plot
    tokens: gr.Plot
    which: gr.Radio
    layer: gr.Slider
    head: gr.Slider
    step: gr.Slider
    explain: gr.Button
    explained: gr.HTML
    exponents: gr.Plot
    measure: gr.Button
    stop_measure: gr.Button
    measured: gr.HTML
    bounds: gr.Plot
    quality: gr.Plot
    geometry: gr.Dropdown
    context: gr.Dropdown
    spread: gr.Radio
    modes: gr.CheckboxGroup
    time: gr.Button
    stop_time: gr.Button
    timed: gr.HTML
    speed: gr.Plot

    @property
    def settings(self) -> list:
        """What decides how the cache is read."""
        return [self.mode, self.error, self.window, self.prune]

    @property
    def stops(self) -> list:
        """Everything that cancels."""
        return [self.stop.click, self.stop_measure.click, self.stop_time.click]


def build() -> Tab:
    """Lays the tab out, inside the caller's Blocks; nothing is loaded or computed."""
    parts: dict = {"run": gr.State()}
    gr.Markdown(INTRO)
    with gr.Row(equal_height=True):
        choices = [(label, key) for key, label in kv_run.MODES.items()]
        parts["mode"] = gr.Radio(choices, value="certified", label="How to read", elem_id="kv-mode", scale=4, min_width=300)
        tolerances = [(f"{error:.1%} of each head's output", error) for error in TOLERANCES]
        parts["error"] = gr.Dropdown(
            tolerances, value=Certified().error, label="Error allowed", elem_id="kv-error", scale=2, min_width=170
        )
        label = "Newest tokens, whole"
        parts["window"] = gr.Slider(0, 256, 0, step=16, label=label, elem_id="kv-window", scale=2, min_width=180)
    with gr.Row(equal_height=True):
        parts["prune"] = gr.Checkbox(False, label="Prune patches first, as set on the first tab", elem_id="kv-prune", scale=4)
        parts["go"] = gr.Button("Answer with trimmed bits", variant="primary", elem_id="kv-go", scale=2, min_width=190)
        parts["stop"] = gr.Button("Cancel", elem_id="kv-stop", scale=1, min_width=90)
    parts["status"] = gr.HTML(elem_id="kv-status", apply_default_css=False)
    # Not visible=False: what is not in the page when a value comes for it can miss it.
    with gr.Column(visible="hidden") as parts["results"]:
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                parts["overlay"] = kv_overlay.component()
            with gr.Column(scale=6, min_width=320):
                parts["heat"] = _plot("kv-heat")
                parts["tokens"] = _plot("kv-tokens")
        with gr.Accordion("Which bits of a sum can matter?", open=False, elem_id="kv-criterion"):
            _criterion(parts)
        with gr.Accordion("How wrong does it get?", open=False, elem_id="kv-errors"):
            gr.Markdown(ERRORS)
            with gr.Row():
                parts["measure"] = gr.Button("Measure on this answer", elem_id="kv-measure", scale=3)
                parts["stop_measure"] = gr.Button("Cancel", scale=1, min_width=90)
            parts["measured"] = gr.HTML(elem_id="kv-measured", apply_default_css=False)
            with gr.Row():
                with gr.Column(min_width=320):
                    parts["quality"] = _plot("kv-quality")
                with gr.Column(min_width=320):
                    parts["bounds"] = _plot("kv-bounds")
    with gr.Accordion("Is it faster here?", open=False, elem_id="kv-speed"):
        _speed(parts)
    return Tab(**parts)


def _plot(name: str) -> gr.Plot:
    # Titles are sentences of the figures' own, so that they stay with a picture that is saved.
    return gr.Plot(show_label=False, container=False, elem_id=name, elem_classes="tb-figure", buttons=[])


def _criterion(parts: dict) -> None:
    gr.Markdown(CRITERION)
    with gr.Row():
        parts["which"] = gr.Radio(
            [kv_events.SCORES, kv_events.OUTPUT], value=kv_events.SCORES, label="Sum", elem_id="kv-which", scale=3, min_width=260
        )
        for name, label in (("layer", "Layer"), ("head", "Query head"), ("step", "Decode step")):
            parts[name] = gr.Slider(1, 2, 1, step=1, label=label, elem_id=f"kv-{name}", scale=2, min_width=150)
        parts["explain"] = gr.Button("Show", elem_id="kv-explain", scale=1, min_width=90)
    parts["explained"] = gr.HTML(elem_id="kv-explained", apply_default_css=False)
    parts["exponents"] = _plot("kv-exponents")


def _speed(parts: dict) -> None:
    gr.Markdown(SPEED)
    with gr.Row(equal_height=True):
        shapes = list(kv_speed.GEOMETRIES)
        parts["geometry"] = gr.Dropdown(shapes, value=shapes[0], label="Layer: query on KV heads", scale=3, min_width=220)
        contexts = [(f"{context:,}", context) for context in kv_speed.CONTEXTS]
        parts["context"] = gr.Dropdown(contexts, value=4096, label="Context, tokens", elem_id="kv-context", scale=2, min_width=130)
        parts["spread"] = gr.Radio(list(kv_speed.QUERIES), value="to few tokens", label="Queries attend", scale=2, min_width=170)
        modes = [(kv_run.MODES[key], key) for key in ("paper", "certified")]
        parts["modes"] = gr.CheckboxGroup(modes, value=["paper", "certified"], label="Fewer bits by", scale=3, min_width=220)
    with gr.Row():
        parts["time"] = gr.Button("Time it on this machine", elem_id="kv-time", scale=3)
        parts["stop_time"] = gr.Button("Cancel", scale=1, min_width=90)
    parts["timed"] = gr.HTML(_note(NOT_TIMED), elem_id="kv-timed", apply_default_css=False)
    parts["speed"] = _plot("kv-times")
    found, where = kv_regimes.regimes()
    if found:
        gr.Plot(kv_regimes.regime_figure(found, where), show_label=False, container=False, elem_classes="tb-figure", buttons=[])
    else:
        gr.HTML(_note(kv_regimes.NONE_YET), apply_default_css=False)


def _note(text: str) -> str:
    return f'<p class="tb-text">{escape(text)}</p>'
