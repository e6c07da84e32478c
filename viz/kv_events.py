"""What the buttons of the tab "Trim bits" do, as plain generators; the wiring is app.py's.

Every generator yields dictionaries from component names (fields of kv_tab.Tab) to new values, and stops when the visitor starts
it again or cancels. Nothing is computed before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from html import escape

import gradio as gr

from bench.kv_attention import has_room
from pruning.tokens import keep_count
from viz import kv_errors, kv_exponents, kv_figures, kv_live, kv_overlay, kv_run, kv_speed, studio
from viz.kv_capture import Captured, capture
from viz.kv_run import Run
from viz.studio import opened
from vlm import one_thread, questions
from vlm.errors import UserError
from vlm.images import open_image
from vlm.model import Answer, Encoded, Vlm
from vlm.open import is_open, open_vlm

SCORES, OUTPUT = "q.k: channels of K", "p.V: tokens of V"
KEPT_RUNS, KEPT_CAPTURES = 8, 4

RUNS, CAPTURES, TURNS = studio.Results(KEPT_RUNS), studio.Results(KEPT_CAPTURES), studio.Turns()
EXPLAINED = studio.Results(KEPT_RUNS)  # the runs whose exponents were asked for
# The components that events change.
CHANGES = frozenset(
    "status run results overlay heat tokens layer head step explained exponents measured bounds quality timed speed".split()
)
# Those that say how far an event is.
TOLD = ("status", "explained", "measured", "timed")
STOPPED = '<p class="tb-text">Stopped.</p>'
Updates = Iterator[dict]


def progress(share: float, text: str) -> str:
    """A bar and what is going on, as HTML."""
    return f'<div class="tb-progress"><progress max="1" value="{share:.3f}"></progress> {escape(text)}</div>'


def telling(name: str, stops: tuple[str, ...] = ()) -> Callable:
    """Of a generator of updates: what goes wrong is told in the component ``name``, and it stops once it is started again.

    The decorated function takes the visitor's session first. stops: what else ends when it starts.
    """

    def decorate(function: Callable[..., Updates]) -> Callable[..., Updates]:
        @wraps(function)
        def run(session: str, *arguments) -> Updates:
            def stop_others() -> None:
                for other in stops:
                    TURNS.begin(f"{session} {other}")

            stop_others()
            mine = f"{session} {name}"
            turn = TURNS.begin(mine)
            try:
                for update in function(*arguments):
                    if not TURNS.is_newest(mine, turn):
                        # An update that was on its way to the page may have overtaken what cancel() wrote.
                        if TURNS.is_stopped(mine):
                            yield {name: STOPPED}
                        return
                    if "run" in update:  # what was begun meanwhile is of the run before
                        stop_others()
                    yield update
            except (UserError, ValueError, RuntimeError) as error:
                told = studio.complaint(error)
                if TURNS.is_newest(mine, turn):
                    yield {name: told}

        return run

    return decorate


def cancel(session: str, *texts: str | None) -> list:
    """Stops everything of a visitor; ``texts``: what the components ``TOLD`` show. Returns what they show then."""
    for name in TOLD:
        TURNS.stop(f"{session} {name}")
    return [STOPPED if "tb-progress" in (text or "") else gr.skip() for text in texts]


def leave(session: str) -> None:
    """Forgets a visitor who left; what still runs for them stops."""
    for name in TOLD:
        TURNS.end(f"{session} {name}")


@telling("status", stops=("explained", "measured"))
def generate(ask: studio.Ask, percent: float, mode: str, error: float, window: float, prune_first: bool) -> Updates:
    """Answers with the cache that the settings describe, token by token, and then shows what was read."""
    question, setting = questions.clean(ask.question), kv_run.setting_of(mode, error, window)
    held = None
    if not is_open(ask.model):
        yield {"status": progress(0, f"Opening {ask.model} ...")}
        held = one_thread.apart(open_vlm, ask.model)
    vlm, image = one_thread.run(_encoded, ask)
    del held  # until here, so that no other model took its place
    vlm.fitting(question)
    method = studio.method_of(ask) if prune_first else None
    if method and method.after:
        raise UserError(
            f"{method.label} prunes {studio.where(method)}, so that layers hold different tokens or the picture is another: choose "
            "a method that prunes before the language model, or do not prune first."
        )
    prune = studio.share_of(percent) if prune_first else 0.0
    key = (ask.model, image.key, question, method, prune, setting)
    run = RUNS.get(key)
    if run is None:
        k = keep_count(len(image.features), prune)
        rankings = [one_thread.run(vlm.rank, image, question, method, k)] if method else None
        keep = rankings[0].keep(k) if rankings else None
        prompt = one_thread.run(vlm.prompt, [image], question, [keep], rankings)
        answer = None
        written = one_thread.steps(vlm.answer([image], question, rankings, prune, studio.MAX_NEW_TOKENS, setting))
        for answer in studio.paced(written, lambda answer: answer.done):
            yield {"status": writing(answer)}
        run = kv_run.finished(vlm, image, question, keep, setting, prompt, answer)
        RUNS.put(key, run)
    yield shown(key, run)


def _encoded(ask: studio.Ask) -> tuple[Vlm, Encoded]:
    vlm = opened(ask.model)
    return vlm, vlm.encode(open_image(ask.image))


def writing(answer: Answer) -> str:
    """The answer as far as it has been written, as HTML."""
    share = len(answer.pieces) / studio.MAX_NEW_TOKENS
    bar = progress(share, f"token {len(answer.pieces)}, at most {studio.MAX_NEW_TOKENS}")
    return f'{bar}<p class="tl-text" data-run="writing">{escape(answer.text)}<span class="tl-caret"></span></p>'


def shown(key: tuple, run: Run) -> dict:
    """Everything that a finished run fills; what belonged to the run before is emptied."""
    layers, group = run.bits.shape[2], run.answer.traces[0][0].norm.shape[1]
    return {
        "run": key,
        "status": kv_figures.summary(run),
        "results": gr.update(visible=True),
        "overlay": kv_overlay.payload(run),
        "heat": kv_figures.heat_map(run),
        "tokens": kv_figures.token_figure(run),
        "layer": gr.update(maximum=layers, value=(layers + 1) // 2),
        "head": gr.update(maximum=group, value=1),
        "step": gr.update(maximum=max(2, run.steps), value=1),
        "explained": "",
        "exponents": None,
        "measured": "",
        "quality": None,
        "bounds": None,
    }


def _run(key: tuple | None) -> Run:
    run = RUNS.get(key) if key else None
    if run is None:
        raise UserError("Please answer with trimmed bits first: the last answer is not kept any more.")
    return run


@one_thread.here
def _captured(key: tuple, run: Run) -> Captured:
    captured = CAPTURES.get(key)
    if captured is None:
        captured = capture(opened(run.model), run.prompt, run.answer.token_ids)
        CAPTURES.put(key, captured)
    return captured


@telling("explained")
def explain(key: tuple | None, which: str, layer: float, head: float, step: float) -> Updates:
    """The exponent picture of one sum; layer, head and step count from 1."""
    run = _run(key)
    EXPLAINED.put(key, True)
    if CAPTURES.get(key) is None:
        yield {"explained": progress(0.5, "looking at the queries, keys and values of this answer ...")}
    captured = _captured(key, run)
    layer, head, step = (
        min(max(int(value), 1), most) - 1
        for value, most in zip((layer, head, step), (len(captured.q), len(captured.q[0]), captured.steps), strict=True)
    )
    planed = int(run.planed[step])
    if not planed:
        raise UserError("All tokens are still whole at this step: keep fewer of the newest tokens whole, or more patches.")
    q, k, v = captured.at(layer, step)
    word = escape(run.words[len(run.patch) + step].strip() or "blank")
    if which == SCORES:
        addends = one_thread.run(kv_exponents.score_addends, q, k[:, :, :planed], head)
        chart = kv_exponents.score_figure(addends, layer, head, word)
    else:
        addends, channel = one_thread.run(kv_exponents.output_addends, q, k, v, planed, head, captured.scale)
        chart = kv_exponents.output_figure(addends, channel, kv_figures.token_labels(run), layer, head, word)
    yield {"explained": "", "exponents": chart}


def explain_again(session: str, key: tuple | None, *where) -> Updates:
    """:func:`explain` for a control that was moved: nothing, until the picture has been asked for once."""
    if key and EXPLAINED.get(key):
        yield from explain(session, key, *where)


@telling("measured")
def measure(key: tuple | None) -> Updates:
    """Attention outputs against float64 and their bounds, then next-token distributions, as far as they have come."""
    run = _run(key)
    yield {"measured": progress(0, "looking at the queries, keys and values of this answer ...")}
    captured = _captured(key, run)
    points: list = []
    for share, found in one_thread.steps(kv_live.beneath(captured, run.setting)):
        points = found
        yield {"measured": progress(share, "attention outputs against float64, layer by layer")}
    _, bounded = kv_live.proven(points)
    if bounded:
        yield {"bounds": kv_errors.bound_figure(points, run.setting.mode)}
    benched = kv_errors.committed()
    forced = one_thread.steps(kv_live.force(one_thread.run(opened, run.model), run))
    for share, losses in studio.paced(forced, lambda now: now[1]):
        update: dict = {"measured": progress(share, "the answer's tokens through one cache after the other")}
        yield update | ({"quality": kv_errors.quality_figure(losses, benched)} if losses else {})
    notes = [f"Live numbers are of {losses[0].tokens} tokens of this one answer. Ran on: {run.where}."]
    if not bounded:
        notes.append("There is no bound to look at: this way of reading, or a window as long as the answer, reads every bit.")
    if not benched:
        notes.append("Committed benchmark results (assets/results/kv_quality.json) are not in this copy.")
    yield {"measured": f'<p class="tb-text" data-measured="done">{escape(" ".join(notes))}</p>'}


@telling("timed")
def time_it(geometry: str, context: float, spread: str, modes: list[str], error: float) -> Updates:
    """Times one layer's decode attention; the figure follows the rounds."""
    if geometry not in kv_speed.GEOMETRIES or spread not in kv_speed.QUERIES or context not in kv_speed.CONTEXTS:
        raise UserError("Please choose heads, a context and queries from the lists.")
    _, kv_heads, dim = kv_speed.GEOMETRIES[geometry]
    device = "cuda" if kv_speed.on_gpu() else "cpu"
    if device == "cpu" and not has_room(4 * kv_heads * dim * int(context)):
        raise UserError("This cache needs more memory than is free on this machine: choose a shorter context or fewer KV heads.")
    chosen = [kv_run.setting_of(mode, error, 0).mode for mode in modes or []]
    what = f"{int(context):,} tokens; {geometry.split(':')[0]}"
    rounds, state = 0, None
    for state in kv_speed.speeds(int(context), kv_speed.GEOMETRIES[geometry], chosen, kv_speed.QUERIES[spread], device):
        update: dict = {"timed": progress(state.share, state.step)}
        done = min((row.timing.n for row in state.rows), default=0)
        if done > rounds:
            rounds = done
            update["speed"] = kv_speed.speed_figure(state, what)
        yield update
    text = f"Memory streams at {state.rate / 1e9:.1f} GB/s here (measured). {kv_speed.kernel_reason(chosen)}"
    yield {"timed": f'<p class="tb-text" data-timed="done">{escape(text)}</p>', "speed": kv_speed.speed_figure(state, what)}
