"""The reading tools below the page, laid out. Closed at first: nothing in them is computed before they are opened."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr

from viz import accuracy, compare, features, reasons, studio, tradeoff, workbench
from viz.style import headline, name_of
from vlm.errors import UserError

TABS = {"tradeoff": "Trade-off", "features": "Feature space", "compare": "Compare methods", "reason": "Why this patch?"}


@dataclass(frozen=True)
class Lab:
    """The components that app.py wires.

    is_open, tab: what is in sight; ahead: whether the run that answers fills it, for it was open when that began; picked: (model,
    picture, patch) that was clicked last, or None.
    """

    accordion: gr.Accordion
    tabs: dict[str, gr.Tab]
    is_open: gr.State
    ahead: gr.State
    tab: gr.State
    picked: gr.State
    notice: gr.HTML
    axis: gr.Radio
    title: gr.HTML
    plot: gr.Plot
    points: gr.HTML
    accuracy: gr.Plot
    features: gr.HTML
    first: gr.Dropdown
    second: gr.Dropdown
    methods: gr.CheckboxGroup
    two: gr.HTML
    overlap_title: gr.HTML
    overlap: gr.Plot
    measure: gr.Button
    divergence_title: gr.HTML
    divergence: gr.Plot
    several: gr.HTML
    reason: gr.HTML

    @property
    def outputs(self) -> list:
        """Everything that :func:`read` may fill."""
        plots = [self.title, self.plot, self.points, self.features, self.two, self.overlap_title, self.overlap]
        return [self.notice, *plots, self.reason]

    @property
    def inputs(self) -> list:
        """What :func:`read` is given after the picture and the slider."""
        return [self.is_open, self.tab, self.picked, self.axis, self.first, self.second, self.methods]


def build() -> Lab:
    """The closed accordion and its tabs."""
    choices = [(name_of(key), key) for key in studio.PRUNERS]
    others = [key for key in ("topk", *studio.PRUNERS) if key in studio.PRUNERS and key != "idpruner"]
    is_open, ahead, tab, picked = gr.State(False), gr.State(False), gr.State("tradeoff"), gr.State()
    with gr.Accordion("Trade-off and reading tools", open=False, elem_id="lab") as accordion:
        notice = gr.HTML(elem_id="lab-notice")
        with gr.Tabs():
            with gr.Tab(TABS["tradeoff"], id="tradeoff") as first_tab:
                gr.Markdown(tradeoff.NOTE)
                axis = gr.Radio(_axes(), value="hopkins", label="Diversity, measured as", elem_id="tradeoff-axis")
                with gr.Row():
                    with gr.Column(scale=6, min_width=320):
                        title = gr.HTML(elem_id="tradeoff-title")
                        plot = gr.Plot(show_label=False, elem_id="tradeoff-plot")
                    with gr.Column(scale=4, min_width=280):
                        points = tradeoff.component()
                record = accuracy.load()
                gr.HTML(headline(accuracy.title(record)) if record else "", elem_id="accuracy-title")
                right = gr.Plot(show_label=False, visible=bool(record), elem_id="accuracy-plot")
                gr.Markdown(accuracy.note(record) if record else accuracy.MISSING, elem_id="accuracy-note")
            with gr.Tab(TABS["features"], id="features") as second_tab:
                gr.Markdown(features.NOTE)
                space = features.component()
            with gr.Tab(TABS["compare"], id="compare") as third_tab:
                gr.Markdown(compare.NOTE)
                with gr.Row():
                    first = gr.Dropdown(choices, value="idpruner", label="One method", elem_id="compare-first")
                    second = gr.Dropdown(choices, value=others[0], label="Another", elem_id="compare-second")
                chosen = list(workbench.DEFAULT_METHODS)
                methods = gr.CheckboxGroup(
                    choices, value=chosen, label="In the matrix, and measured below", elem_id="compare-methods"
                )
                with gr.Row():
                    with gr.Column(scale=4, min_width=280):
                        two = compare.component()
                    with gr.Column(scale=5, min_width=320):
                        overlap_title = gr.HTML()
                        overlap = gr.Plot(show_label=False, elem_id="overlap-plot")
                measure = gr.Button("Measure where the answers part, and show the first four", elem_id="measure")
                divergence_title = gr.HTML()
                divergence = gr.Plot(show_label=False, elem_id="divergence-plot")
                several = gr.HTML(elem_id="several", apply_default_css=False)
            with gr.Tab(TABS["reason"], id="reason") as fourth_tab:
                gr.Markdown(reasons.NOTE)
                reason = reasons.component()
    tabs = dict(zip(TABS, (first_tab, second_tab, third_tab, fourth_tab), strict=True))
    trade = (axis, title, plot, points, right)
    both = (first, second, methods, two, overlap_title, overlap, measure, divergence_title, divergence, several)
    return Lab(accordion, tabs, is_open, ahead, tab, picked, notice, *trade, space, *both, reason)


@contextlib.contextmanager
def told(place: gr.HTML) -> Iterator[dict]:
    """Collects what an event changes, by component; a complaint goes to ``place`` as a sentence instead of a trace."""
    said: dict = {place: ""}
    try:
        yield said
    except (UserError, ValueError, RuntimeError, TypeError) as error:
        said.update({place: studio.complaint(error)})


def _axes() -> list[tuple[str, str]]:
    names = ("Hopkins, image tokens", "Hopkins, random box", "Coverage", "Mean neighbour distance", "Smallest neighbour distance")
    return list(zip(names, tradeoff.AXIS_TITLES, strict=True))


def reading(lab: Lab, *values) -> dict:
    """What :func:`read` fills, by component, or what stands in its way."""
    with told(lab.notice) as said:
        said.update(read(lab, *values))
    return said


def read(lab: Lab, asked, percent, is_open: bool, tab: str, picked, axis: str, first: str, second: str, methods: list[str]) -> dict:
    """What the tab in sight shows now, by component; a closed lab computes nothing."""
    if not is_open or asked is None:
        return {lab.notice: ""}
    if tab == "features":
        reading = workbench.feature_space(asked, percent)
        return {lab.notice: "", lab.features: reading.payload}
    if tab == "compare":
        reading = workbench.side_by_side(asked, percent, first, second, methods)
        drawn = {lab.two: reading.payload, lab.overlap: reading.figure, lab.overlap_title: headline(reading.title)}
        return {lab.notice: studio.notice(reading.note)} | drawn
    if tab == "reason":
        # A patch stays chosen while the slider, lambda or the method change, but not on another picture.
        token = picked[2] if picked and tuple(picked[:2]) == (asked.model, asked.image) else None
        return {lab.notice: "", lab.reason: workbench.reason(asked, percent, token).payload}
    reading = workbench.trade_off(asked, percent, axis)
    drawn = {lab.plot: reading.figure, lab.points: reading.payload, lab.title: headline(reading.title)}
    return {lab.notice: ""} | drawn
