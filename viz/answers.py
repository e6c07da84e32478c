"""Two answers side by side: their words, where they part, and the measured time of every step."""

from dataclasses import dataclass
from html import escape
from statistics import median

from vlm.model import Answer

STEPS = (
    ("vision", "vision tower", "#7c8aa5"),
    ("scoring", "scoring", "#c06bd6"),
    ("selection", "selection", "#e8579a"),
    ("prefill", "prefill + first token", "#3b82f6"),
    ("decode", "decode", "#22a06b"),
)


@dataclass(frozen=True)
class Speedup:
    """How many times faster the pruned answer was; None where one side is not there yet."""

    prefill: float | None
    first_token: float | None
    total: float | None


@dataclass(frozen=True)
class Written:
    """The answers of one question as far as they have been written; None where one waits, or is not asked for.

    trimmed: the pruned answer again, its KV cache read with fewer bits; where: what the model ran on, in words; stopped: nothing
    more will be written; opening: the model that is opened first.
    """

    full: Answer | None = None
    pruned: Answer | None = None
    trimmed: Answer | None = None
    where: str = ""
    stopped: bool = False
    opening: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing that the panel shows is still to come."""
        return all(answer and answer.done for answer in (self.full, self.pruned)) and (self.trimmed is None or self.trimmed.done)

    @property
    def pending(self) -> str:
        """What stands where something is missing."""
        return "Stopped." if self.stopped else "Writing ..."


def parting(one: Answer, other: Answer) -> int | None:
    """Index of the first token at which two answers differ, or None while they agree."""
    for index, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=False)):
        if a != b:
            return index
    if one.done and other.done and len(one.token_ids) != len(other.token_ids):
        return min(len(one.token_ids), len(other.token_ids))
    return None


def speedup(full: Answer, pruned: Answer) -> Speedup:
    """Measured ratios full / pruned of this one run."""

    def ratio(a: float, b: float) -> float | None:
        return a / b if a > 0 and b > 0 else None

    f, p = full.timings, pruned.timings
    total = ratio(f.total, p.total) if full.done and pruned.done else None
    ready = f.prefill > 0 and p.prefill > 0
    return Speedup(ratio(f.prefill, p.prefill), ratio(f.first_token, p.first_token) if ready else None, total)


def seconds_by_step(answer: Answer) -> dict[str, float]:
    """Seconds of each of ``STEPS``."""
    t = answer.timings
    return {
        "vision": t.vision,
        "scoring": t.scoring,
        "selection": t.selection,
        "prefill": t.prefill,
        "decode": sum(t.decode),
    }


def milliseconds(seconds: float) -> str:
    """("0.4 ms", "37 ms", "1,204 ms")."""
    value = seconds * 1e3
    return f"{value:.1f} ms" if value < 10 else f"{value:,.0f} ms"


def comparison(written: Written) -> str:
    """The panel with the answers, as HTML; all text of the model is escaped."""
    full, pruned, trimmed = written.full, written.pruned, written.trimmed
    if full is None and pruned is None:
        if written.opening and not written.stopped:
            return waiting(f"Opening {written.opening} ...")
        return waiting("Ask, and the full and the pruned answer appear here side by side.")
    split = parting(full, pruned) if full and pruned else None
    longest = max(sum(seconds_by_step(a).values()) for a in (full, pruned, trimmed) if a)
    parts = [
        '<div class="tl-answers">',
        _card("full", "All patches", full, split, longest, written.stopped),
        _card("pruned", "Pruned", pruned, split, longest, written.stopped),
    ]
    if trimmed:
        parting_full = parting(full, trimmed) if full else None
        parts.append(_card("trimmed", "Pruned + trimmed bits", trimmed, parting_full, longest, written.stopped))
    parts.append("</div>")
    if full and pruned:
        parts.append(_verdict(full, pruned, split, written.pending))
    if pruned and trimmed and trimmed.traces:
        parts.append(_trimmed_note(pruned, trimmed, written.pending))
    parts.append(_legend())
    parts.append(f'<p class="tl-where">Measured once each, when first asked, on: {escape(written.where)}.</p>')
    return "".join(parts)


def several(written: dict[str, Answer | None]) -> str:
    """The words of many answers by title, as HTML; the first is what the others are compared with, None where one waits."""
    whole = next(iter(written.values()))
    cards = []
    for index, (title, answer) in enumerate(written.items()):
        split = parting(whole, answer) if index and whole and answer else None
        cards.append(_card(f"several-{index}", escape(title), answer, split, None))
    return f'<div class="tl-answers">{"".join(cards)}</div>'


def waiting(text: str) -> str:
    """The panel while there is no answer."""
    return f'<div class="tl-answers-empty">{escape(text)}</div>'


def _card(key: str, title: str, answer: Answer | None, split: int | None, longest: float | None, stopped: bool = False) -> str:
    """One answer; ``longest``: the seconds of the longest bar, None for a card without times."""
    if answer is None:
        state = "stopped" if stopped else "waiting"
        return f'<section class="tl-card" data-answer="{key}"><h4>{title}</h4><p class="tl-text tl-waiting">{state}</p></section>'
    words = "".join(
        f'<span class="{"tl-part" if index == split else "tl-after" if split is not None and index > split else "tl-same"}" '
        f'title="probability {_percent(answer.logprobs[index])}">{escape(piece)}</span>'
        for index, piece in enumerate(answer.pieces)
    )
    state = "done" if answer.done else "stopped" if stopped else "running"
    end = {"done": "", "stopped": ' <span class="tl-waiting">stopped</span>', "running": "<span class=tl-caret></span>"}[state]
    bar = "" if longest is None else _bar(answer, longest)
    turns = "".join(f'<p class="tl-turn"><b>{escape(q)}</b> {escape(a)}</p>' for q, a in answer.history)
    detail = f"{answer.kept_tokens} of {answer.visual_tokens} visual tokens, {answer.prompt_tokens} in the prompt"
    return (
        f'<section class="tl-card" data-answer="{key}" data-state="{state}"><h4>{title} <small>{escape(detail)}</small></h4>{turns}'
        f'<p class="tl-text">{words}{end}</p>{bar}</section>'
    )


def _percent(logprob: float) -> str:
    return f"{100 * 2.718281828459045**logprob:.1f}%"


def _bar(answer: Answer, longest: float) -> str:
    steps = seconds_by_step(answer)
    spans = "".join(
        f'<i style="width:{100 * steps[key] / longest if longest else 0:.3f}%;background:{color}" '
        f'title="{label}: {milliseconds(steps[key])}"></i>'
        for key, label, color in STEPS
    )
    rows = "".join(
        f"<tr><td>{label}{_per_step(answer) if key == 'decode' else ''}</td><td>{milliseconds(steps[key])}</td></tr>"
        for key, label, _ in STEPS
    )
    rows += f"<tr><td><b>to first token</b></td><td><b>{milliseconds(answer.timings.first_token)}</b></td></tr>"
    rows += f"<tr><td><b>in total</b></td><td><b>{milliseconds(answer.timings.total)}</b></td></tr>"
    return f'<div class="tl-bar">{spans}</div><table class="tl-times"><tbody>{rows}</tbody></table>'


def _per_step(answer: Answer) -> str:
    steps = answer.timings.decode
    return f" ({len(steps)} steps of {milliseconds(median(steps))})" if steps else ""


def _verdict(full: Answer, pruned: Answer, split: int | None, pending: str) -> str:
    ratios = speedup(full, pruned)
    chips = "".join(
        f'<span class="tl-chip" data-speedup="{key}"><b>{value:.2f}x</b> {label}</span>'
        for key, label, value in (
            ("prefill", "prefill", ratios.prefill),
            ("first_token", "time to first token", ratios.first_token),
            ("total", "in total", ratios.total),
        )
        if value is not None
    )
    if full.done and pruned.done:
        agreement = "Both answers are the same." if split is None else f"The answers part at token {split + 1} (marked)."
    else:
        agreement = pending
    return f'<div class="tl-verdict">{chips}<span class="tl-agreement">{agreement}</span></div>'


def _trimmed_note(pruned: Answer, trimmed: Answer, pending: str) -> str:
    """What the third answer has read, and what that cost in time."""
    traces = [trace for step in trimmed.traces for trace in step]
    bits = sum(trace.mean_bits for trace in traces) / len(traces)
    share = sum(trace.bytes_read for trace in traces) / sum(trace.bytes_whole for trace in traces)
    steps = [answer.timings.decode for answer in (trimmed, pruned)]
    speed = " against ".join(milliseconds(median(times)) for times in steps if times)
    split = parting(pruned, trimmed)
    same = "It says what the pruned answer says." if split is None else f"It leaves the pruned answer at token {split + 1}."
    if not trimmed.done:
        same = pending
    return (
        f'<p class="tl-agreement" data-trimmed="note">Trimmed bits: {bits:.1f} bits per number of the KV cache were read, '
        f"{share:.0%} of a 16-bit cache's bytes. {same} A decode step took {speed}. "
        f"It saves no memory. Read by the {escape(trimmed.reader)}</p>"
    )


def _legend() -> str:
    return (
        '<div class="tl-keys">' + "".join(f'<span><i style="background:{c}"></i>{label}</span>' for _, label, c in STEPS) + "</div>"
    )
