"""TrimLens: which image patches does a vision-language model need? This file wires the page, nothing else."""

import contextlib
import importlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr

from pruning.registry import METHODS
from viz import accuracy, kv_events, kv_tab, lab, overlay, studio, table, where, workbench
from viz.style import headline
from vlm import one_thread
from vlm.device import on_zero_gpu
from vlm.embedded import NAME
from vlm.errors import UserError
from vlm.gguf_text import prepare
from vlm.open import MODELS, open_vlm

HERE = Path(__file__).resolve().parent
IMAGES = HERE / "assets" / "images"
EXAMPLES = json.loads((IMAGES / "examples.json").read_text())
SUGGESTIONS = ("What is in the picture?", "How many objects are there?", "What is at the top left?", "Is there a cat?")
INTRO = """# TrimLens
Which image patches does a vision-language model really need? Choose a picture, ask, and drag the slider: the patches are cut
as you drag. Let go, and the running model answers twice, with all patches and with the kept ones, every step timed."""
ABOUT = """
**What you see.** The vision tower turns the picture into visual tokens, one per 28 x 28 pixels. A pruning method orders
them, most before the language model runs (below its name stands where); only the first *K* go on, at their original positions
(M-RoPE). Fewer tokens make the prefill shorter and the KV cache smaller; the vision tower costs the same either way.

**IDPruner** picks greedily by Maximal Marginal Relevance: lambda x importance - (1 - lambda) x similarity to the nearest patch
already kept. Lambda 1 is importance alone, lambda 0 is diversity alone. The order does not depend on *K*, so the slider is a cut.

**TrimLens-150M** was made by this project (SmolLM2-135M-Instruct and a small vision tower in the Qwen2.5-VL class). It knows
pictograms, coloured shapes, how many there are and where, some 300 words, numbers, simple charts and small documents, and is often
wrong about counts, words and charts; on photographs it guesses. Qwen2.5-VL is one click away where the hub can be reached and the
memory suffices.

**Times** are measured once per answer on the machine that runs this page, nothing is simulated. Rankings and answers are cached
by content, so a second look at the same setting shows the times of the first.
"""
CUT = "(percent) => window.trimlens ? window.trimlens.cut(percent) : null"
KEEP = "(count) => window.trimlens ? window.trimlens.keep(count) : 75"


class Picture(gr.Image):
    """A picture as the path of its file: decoding, and every complaint about a file, is vlm.images'."""

    is_template = True

    def preprocess(self, payload):
        return payload.path if payload else None


def ended(updates: Iterator[list | dict], count: int) -> Iterator[list | dict]:
    """The updates of an event's ``count`` outputs, and an empty one at the end.

    Gradio sends an event's last update once more when it ends: a run that a newer one has overtaken must not end with its own.
    """
    yield from updates
    yield [gr.skip()] * count


def build_demo() -> gr.Blocks:
    """The page; nothing is loaded or launched here."""
    with gr.Blocks(title="TrimLens", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        gr.Markdown(INTRO)
        with gr.Tab("Trim tokens") as trim_tokens, gr.Row():
            with gr.Column(scale=4, min_width=320):
                image = Picture(
                    str(IMAGES / EXAMPLES[0][0]),
                    label="Picture",
                    type="filepath",
                    sources=["upload", "clipboard", "webcam"],
                    height=230,
                    elem_id="picture",
                )
                question = gr.Textbox(EXAMPLES[0][1], label="Question", lines=1, max_lines=4, elem_id="question")
                follow = gr.Checkbox(False, label="Follow up on the answer before", elem_id="follow")
                asks = [[text] for text in SUGGESTIONS]
                suggestions = gr.Examples(asks, [question], label="Suggestions", elem_id="suggestions")
                gr.Examples(
                    [[str(IMAGES / name), text] for name, text in EXAMPLES],
                    [image, question],
                    label="Examples: drawn scenes, and a photograph that the small model was not made for",
                    visible_columns=[0],
                    examples_per_page=len(EXAMPLES),
                    elem_id="examples",
                )
                methods, scorers, first = studio.offered(NAME)
                about = studio.about("idpruner")
                method = gr.Dropdown(methods, value="idpruner", label="Pruning method", info=about, elem_id="method")
                scorer = gr.Dropdown(scorers, value=first, label="Importance", elem_id="scorer")
                lam = gr.Slider(0, 1, 0.5, step=0.05, label="Lambda: diversity (0) to importance (1)", elem_id="lambda")
                model = gr.Dropdown(list(MODELS), value=NAME, label="Model", elem_id="model")
            with gr.Column(scale=7, min_width=320):
                with gr.Row(equal_height=True):
                    percent = gr.Slider(0, 99.9, 75, step=0.1, label="Prune (%)", scale=5, min_width=220, elem_id="prune")
                    tokens = gr.Number(label="Patches kept", precision=0, minimum=1, scale=2, min_width=110, elem_id="tokens")
                    go = gr.Button("Answer", variant="primary", scale=1, min_width=90, elem_id="go")
                    stop = gr.Button("Cancel", scale=1, min_width=90, elem_id="stop")
                patches = overlay.component()
                problem = gr.HTML(elem_id="notice")
                third = gr.Checkbox(False, label="A third answer: pruned, and with trimmed bits", elem_id="third")
                panel = gr.HTML(studio.answers.comparison(studio.answers.Written()), apply_default_css=False, elem_id="answers")
        with trim_tokens:
            tools = lab.build()
        with gr.Tab("Trim bits", elem_id="bits"):
            bits = kv_tab.build()
        with gr.Tab("All methods", elem_id="table") as table_tab:
            compared = table.build()
            wins = where.build()
        with gr.Accordion("What am I looking at?", open=False):
            gr.Markdown(ABOUT)

        controls = [model, image, question, method, scorer, lam]
        asked = gr.State()

        def show(request: gr.Request, model, image, question, method, scorer, lam, share, trimmed, follow, last, *read):
            before = studio.turns_before(last, follow, model, image, question)
            ask = studio.Ask(model, image, question, method, scorer, lam, before)
            shown = studio.show(ask, share, request.session_hash, with_overlay=ask != last, trimmed=trimmed)
            yield from ended(updates(shown, last, share, read), len(outputs))

        def updates(steps, last, share, read):
            for shown in steps:
                ahead = None if shown.asked is None else read[0]
                kept = {patches: shown.overlay, panel: shown.panel, asked: shown.asked, problem: shown.notice, tools.ahead: ahead}
                yield {component: part for component, part in kept.items() if part is not None}
                if shown.asked not in (None, last):
                    # Before the answers: a reading that waits for them comes seconds later.
                    yield lab.reading(tools, shown.asked, share, *read)

        def cancel(request: gr.Request):
            studio.TURNS.stop(request.session_hash)

        def leave(request: gr.Request):
            studio.TURNS.end(request.session_hash)
            kv_events.leave(request.session_hash)

        def options(key):
            chosen = METHODS[key]
            allowed = [gr.update(interactive=can) for can in (chosen.takes_lambda, chosen.takes_scorer)]
            return gr.update(info=studio.about(key)), *allowed

        def offer(model, method, scorer):
            methods, scorers, first = studio.offered(model)
            there = [key for _, key in methods + scorers]
            kept = method if method in there else "idpruner", scorer if scorer in there else first
            return [gr.update(choices=found, value=value) for found, value in zip((methods, scorers), kept, strict=True)]

        outputs = [patches, panel, asked, problem, tools.ahead, *tools.outputs]
        # A newer run makes the older one stop (studio.Turns), so runs need not wait for each other in a queue.
        free = {"trigger_mode": "multiple", "concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        percent.input(None, percent, tokens, js=CUT, api_visibility="private")
        tokens.input(None, tokens, percent, js=KEEP, api_visibility="private")
        patches.loaded(None, percent, tokens, js=CUT, api_visibility="private")
        method.change(options, method, [method, lam, scorer], **quick)
        model.change(offer, [model, method, scorer], [method, scorer], **quick)
        changes = [image.change, question.submit, method.change, scorer.change, lam.release, model.change, go.click, demo.load]
        changes += [percent.release, tokens.submit, third.input]
        run = {"fn": show, "inputs": [*controls, percent, third, follow, asked, *tools.inputs], "outputs": outputs, **free}
        gr.on(changes, **run)
        suggestions.load_input_event.then(**run)
        stop.click(cancel, **quick)
        demo.unload(leave)
        wire_lab(tools, asked, percent, tokens, [method, lam], run)
        wire_bits(bits, [*controls, percent])
        filled = [compared.source, compared.share, compared.axis], [compared.rows, compared.plot]
        gr.on([table_tab.select, compared.share.change, compared.axis.change], table.fill, *filled, **quick)
        chosen = compared.source.change(table.choose, compared.source, [compared.said, compared.share, compared.axis], **quick)
        chosen.then(table.fill, *filled, **quick)
        gr.on([table_tab.select, compared.share.change], where.fill, compared.share, wins, **quick)
    return demo


def wire_lab(tools: lab.Lab, asked: gr.State, percent: gr.Slider, tokens: gr.Number, setting: list, run: dict) -> None:
    """Events of the reading tools, which read what the page shows, only while they are open (viz/lab.py).

    setting: the method's and lambda's components, which a click on a point sets; run: the arguments of an event that answers.
    """
    method, lam = setting
    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def choose(event: gr.EventData):
        with lab.told(tools.notice) as said:
            key, chosen = workbench.chosen(event._data)
            said.update({method: key} | ({} if chosen is None else {lam: chosen}))
        return said

    def pick(asked, percent, event: gr.EventData):
        with lab.told(tools.notice) as said:
            token = workbench.picked(event._data)
            said[tools.reason] = workbench.reason(asked, percent, token).payload
            said[tools.picked] = (asked.model, asked.image, token)
        return said

    def measure(asked, percent, methods):
        with lab.told(tools.notice) as said:
            found = workbench.divergences(asked, percent, methods)
            said.update({tools.divergence: found.figure, tools.divergence_title: headline(found.title)})
            said[tools.notice] = studio.notice(found.note)
        yield said
        with lab.told(tools.notice) as said:
            said[tools.notice] = gr.skip()
            for page in workbench.several(asked, percent, methods):
                yield {tools.several: page}
        yield said

    def catch_up(ahead, *values):
        return {tools.notice: gr.skip()} if ahead else lab.reading(tools, *values)

    calm = {"concurrency_limit": 1, "concurrency_id": "lab", "show_progress": "hidden", "api_visibility": "private"}
    look = {
        "fn": partial(lab.reading, tools),
        "inputs": [asked, percent, *tools.inputs],
        "outputs": tools.outputs,
        "trigger_mode": "always_last",
        **calm,
    }
    chosen = [tools.axis.change, tools.first.change, tools.second.change, tools.methods.change]
    gr.on([percent.release, tokens.submit, *chosen], **look)
    # Another picture, question or method is read by the run that answers, before its answers, if the tools were open when it began.
    asked.change(**look | {"fn": catch_up, "inputs": [tools.ahead, *look["inputs"]]})
    gr.on([tools.accordion.expand, tools.tabs["tradeoff"].select], accuracy.drawn, outputs=tools.accuracy, **quick)
    tools.accordion.expand(lambda: True, outputs=tools.is_open, **quick).then(**look)
    tools.accordion.collapse(lambda: False, outputs=tools.is_open, **quick)
    for key, tab in tools.tabs.items():
        tab.select(lambda key=key: key, outputs=tools.tab, **quick).then(**look)
    point = tools.points.choose(choose, outputs=[tools.notice, method, lam], **calm)
    point.then(**run)
    tools.reason.pick(pick, [asked, percent], [tools.notice, tools.reason, tools.picked], **calm)
    # Another picture, question or method: what was measured is of the one before.
    measured = [tools.divergence_title, tools.divergence, tools.several]
    # It takes seconds: the other tools need not wait for it.
    slow = calm | {"concurrency_id": "measure", "trigger_mode": "once"}
    measuring = tools.measure.click(measure, [asked, percent, tools.methods], [tools.notice, *measured], **slow)
    asked.change(None, outputs=measured, js="() => ['', null, '']", cancels=[measuring], api_visibility="private")


def wire_bits(tab: kv_tab.Tab, asked: list) -> None:
    """Events of the tab "Trim bits"; ``asked``: the first tab's controls and its slider."""
    parts = [name for name in vars(tab) if name in kv_events.CHANGES]
    outputs = [getattr(tab, name) for name in parts]
    free = {"trigger_mode": "multiple", "concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}

    def streamed(function):
        def handler(request: gr.Request, *values):
            updates = function(request.session_hash, *values)
            yield from ended(([update.get(name, gr.skip()) for name in parts] for update in updates), len(parts))

        return handler

    def generate(session, model, image, question, method, scorer, lam, percent, *settings):
        ask = studio.Ask(model, image, question, method, scorer, lam)
        return kv_events.generate(session, ask, percent, *settings)

    def cancel(request: gr.Request, *texts):
        return kv_events.cancel(request.session_hash, *texts)

    sums = [tab.run, tab.which, tab.layer, tab.head, tab.step]
    moved = [tab.which.change, tab.layer.release, tab.head.release, tab.step.release]
    timing = [tab.geometry, tab.context, tab.spread, tab.modes, tab.error]
    tab.go.click(streamed(generate), [*asked, *tab.settings], outputs, **free)
    tab.explain.click(streamed(kv_events.explain), sums, outputs, **free)
    gr.on(moved, streamed(kv_events.explain_again), sums, outputs, **free)
    tab.measure.click(streamed(kv_events.measure), tab.run, outputs, **free)
    # Two timings at once would time each other.
    alone = free | {"concurrency_limit": 1, "trigger_mode": "once"}
    timed = tab.time.click(streamed(kv_events.time_it), timing, outputs, **alone)
    told = [getattr(tab, name) for name in kv_events.TOLD]
    # One that still waits for its turn has not begun anything that could be stopped.
    gr.on(tab.stops, cancel, told, told, queue=False, show_progress="hidden", api_visibility="private", cancels=[timed])


def open_in_background() -> threading.Thread:
    """Opens the embedded model while the page is already served; a failure is told to whoever asks."""

    def work() -> None:
        with contextlib.suppress(UserError):
            open_vlm(NAME)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def lend_nothing() -> None:
    """A Space on ZeroGPU is refused without a function that asks for its GPU; TrimLens runs on its CPU (vlm/device.py)."""
    importlib.import_module("spaces").GPU(duration=1)(lambda: None)


def main() -> None:
    """Serves on GRADIO_SERVER_NAME:GRADIO_SERVER_PORT, by default 127.0.0.1:7860."""
    if on_zero_gpu():
        lend_nothing()
    try:
        one_thread.run(prepare)
    except UserError as error:
        print(f"  {error}", flush=True)
    open_in_background()
    build_demo().queue(max_size=32).launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
        theme=gr.themes.Soft(),
        css_paths=[HERE / "viz" / "answers.css", HERE / "viz" / "kv.css"],
        max_file_size="30mb",
        footer_links=["gradio", "settings"],
    )


if __name__ == "__main__":
    main()
