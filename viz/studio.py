"""What the page does, as plain functions: from the controls' values to an overlay payload and to streamed answers."""

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from html import escape
from typing import TypeVar

from kvquant.cache import Setting as KVSetting
from kvquant.modes import Certified
from pruning.registry import METHODS, SCORERS, Method, get_method
from pruning.tokens import IMAGE, Ranking, keep_count
from viz import answers, overlay
from vlm import one_thread, questions
from vlm.errors import UserError
from vlm.images import open_image
from vlm.model import Answer, Encoded, Vlm
from vlm.open import is_open, open_vlm, scorer_file

MAX_NEW_TOKENS, MOST_TURNS = 48, 4
# No window: a pruned prompt is hardly longer than the usual window of 64, and nothing of it would be read with fewer bits.
TRIMMED = KVSetting(Certified(), window=0)
KEPT_RESULTS = 256
# Seconds between two updates of an answer: drawing every token costs a browser on the same cores more than writing it.
PACE = 0.2
T = TypeVar("T")
PRUNERS = {key: method for key, method in METHODS.items() if key != "none"}


@dataclass(frozen=True)
class Ask:
    """The controls' values, as far as they decide the order of the patches; before: the earlier questions of a conversation."""

    model: str
    image: str | None
    question: str
    method: str
    scorer: str
    lam: float
    before: tuple[str, ...] = ()


class Results:
    """A small cache of what has been computed, oldest out first; shared by all visitors, keyed by content."""

    def __init__(self, size: int) -> None:
        self.size, self.lock = size, threading.Lock()
        self.items: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable):
        """The result, or None."""
        with self.lock:
            if key in self.items:
                self.items.move_to_end(key)
            return self.items.get(key)

    def put(self, key: Hashable, value) -> None:
        """Keeps a result."""
        with self.lock:
            self.items[key] = value
            while len(self.items) > self.size:
                self.items.popitem(last=False)


RANKINGS, ANSWERS = Results(KEPT_RESULTS), Results(KEPT_RESULTS)


def notice(text: str) -> str:
    """A sentence for the user, as HTML."""
    return f'<div class="tl-notice" role="alert">{escape(text)}</div>' if text else ""


def complaint(error: Exception) -> str:
    """What a visitor is told of an error, as HTML; what is no UserError is also printed, for who runs the page."""
    if isinstance(error, UserError):
        return notice(str(error))
    traceback.print_exception(error)
    return notice(f"This did not work: {str(error).partition(chr(10))[0][:200]}")


def method_of(ask: Ask) -> Method:
    """The registered method with the chosen importance and lambda where it takes them."""
    method = METHODS[ask.method]
    if method.takes_scorer and ask.scorer in SCORERS:
        method = method.with_(scorer=SCORERS[ask.scorer])
    return method.with_(lam=ask.lam) if method.takes_lambda else method


def turns_before(asked: Ask | None, follow: bool, model: str, image: str | None, question: str) -> tuple[str, ...]:
    """The earlier questions, where ``question`` follows up on what was asked about the same picture last."""
    if not follow or asked is None or (asked.model, asked.image) != (model, image):
        return ()
    if asked.question == question:
        return asked.before
    # The first question stays: by it the picture was pruned.
    first, *later = *asked.before, asked.question
    return (first, *later[max(0, len(later) - MOST_TURNS + 1) :])


def pruned_by(ask: Ask) -> str:
    """The question by which the picture is pruned: once, when it comes in, so that of a conversation it is the first.

    Raises:
        UserError: it is empty or too long.
    """
    return questions.clean(ask.before[0] if ask.before else ask.question)


def offered(model: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]], str]:
    """(label, key) of the methods and of the importances that a model can be asked with, and the importance to begin with.

    What is trained is offered only where a scorer lies beside the model's weights.
    """
    there = scorer_file(model).exists()
    methods = [(m.label, key) for key, m in PRUNERS.items() if there or "weights" not in m.needs]
    scorers = [(s.label, key) for key, s in SCORERS.items() if there or key != "trained"]
    return methods, scorers, get_method("idpruner", there).scorer.key


def about(key: str) -> str:
    """Where a method comes from, where it prunes, and what else there is to say."""
    method = METHODS[key]
    maps = " It needs attention maps, which FlashAttention does not hand out." if method.needs_attention_maps else ""
    return f"{method.paper}. It prunes {where(method)}.{maps} {method.note}".strip()


def where(method: Method) -> str:
    """Where a method prunes, after "it prunes"."""
    return "the image itself" if method.after == IMAGE else method.where


def opened(name: str) -> Vlm:
    """The open model, in the thread that all answers wait for: a model is opened before one enters it.

    Raises:
        UserError: the model is not in memory any more.
    """
    if one_thread.is_here() and not is_open(name):
        raise UserError(f"{name} is not in memory any more, another model took its place. Press Answer, and it is opened again.")
    return open_vlm(name)


@one_thread.here
def _prepare(ask: Ask, prune: float) -> tuple[Vlm, Encoded, Ranking, Method]:
    question, vlm = pruned_by(ask), opened(ask.model)
    image = vlm.encode(open_image(ask.image))
    method = method_of(ask)
    budget = keep_count(len(image.features), prune) if method.budgeted else None
    key = (ask.model, image.key, question, method, budget)
    ranking = RANKINGS.get(key)
    if ranking is None:
        ranking = vlm.rank(image, question, method, budget)
        RANKINGS.put(key, ranking)
    return vlm, image, ranking, method


def share_of(percent: float | None) -> float:
    """The slider's percentage as the fraction that is pruned."""
    return min(max(float(percent or 0) / 100, 0.0), 0.999)


class Turns:
    """The newest run of every visitor; an older one stops at its next token. This is how Cancel and a new drag work."""

    def __init__(self) -> None:
        self.lock, self.newest, self.stopped = threading.RLock(), {}, {}
        # What a visitor's panel shows while it is not done.
        self.undone: dict[str, answers.Written] = {}

    def begin(self, session: str) -> int:
        """A new turn, which makes all earlier ones of this visitor stale."""
        with self.lock:
            self.newest[session] = self.newest.get(session, 0) + 1
            self.stopped.pop(session, None)
            return self.newest[session]

    def stop(self, session: str) -> None:
        """Makes all turns of this visitor stale, with none in their place."""
        with self.lock:
            last = self.begin(session) - 1
            self.stopped[session] = last

    def is_stopped(self, session: str, turn: int | None = None) -> bool:
        """Whether nothing was begun since the last :meth:`stop`; of a ``turn``, whether it is the one that this has stopped."""
        return session in self.stopped and turn in (None, self.stopped[session])

    def is_newest(self, session: str, turn: int) -> bool:
        """Whether nothing was begun since."""
        return self.newest.get(session) == turn

    def end(self, session: str) -> None:
        """Forgets a visitor who left."""
        with self.lock:
            for kept in (self.newest, self.stopped, self.undone):
                kept.pop(session, None)


TURNS = Turns()


@dataclass(frozen=True)
class Shown:
    """What the page shows next; None leaves a part as it is. ``asked`` is what the overlay stands for."""

    overlay: dict | None = None
    panel: str | None = None
    notice: str = ""
    asked: Ask | None = None


@one_thread.here
def look(ask: Ask, percent: float) -> dict:
    """The overlay's payload: every patch's rank and importance; percent: what is pruned, for a budgeted method.

    Raises:
        UserError: the picture, the question or the model cannot be used.
    """
    vlm, image, ranking, method = _prepare(ask, share_of(percent))
    title = method.label + (f", lambda {ask.lam:g}" if method.takes_lambda else "")
    if ranking.budget:
        title += f"; made for {ranking.budget} patches: let go of the slider to redraw"
    scorer = (method.scorer or SCORERS["neg-cos-mean"]).label
    whole = method.after == IMAGE
    picture = vlm.smaller(image, ranking.budget).picture if whole else image.picture
    return overlay.payload(picture, image.features, image.grid, ranking, title, scorer, whole)


@dataclass(frozen=True)
class Side:
    """One column of answers: what is pruned, and how the KV cache is read (None: as transformers does)."""

    ranking: Ranking | None = None
    method: Method | None = None
    prune: float = 0.0
    kv: KVSetting | None = None

    @property
    def key(self) -> Hashable:
        """What tells its answers from another side's; the patches themselves, for some methods choose them by another question."""
        if self.ranking is None:
            return None
        return self.method, self.ranking.keep(keep_count(len(self.ranking.order), self.prune)).tobytes(), self.kv


def compare(ask: Ask, percent: float, trimmed: bool = False) -> Iterator[answers.Written]:
    """Streams the full answer, then the pruned one, then, if ``trimmed``, that with fewer bits of the KV cache.

    Every side has its own conversation: earlier questions were answered by itself.

    Raises:
        UserError: as :func:`look`.
    """
    prune = share_of(percent)
    vlm, image, ranking, method = _prepare(ask, prune)
    sides = [Side(), Side(ranking, method, prune), *([Side(ranking, method, prune, TRIMMED)] if trimmed else [])]
    said: list[tuple[tuple[str, str], ...]] = [() for _ in sides]
    for asked in (*ask.before, ask.question):
        question = questions.clean(asked)
        written: list[Answer | None] = [None, None, None]
        for index, side in enumerate(sides):
            for answer in stream(vlm, image, question, side, said[index]):
                written[index] = answer
                yield answers.Written(*written, where=vlm.placement.reason)
            said[index] += ((question, written[index].text),)


def show(ask: Ask, percent: float, session: str, with_overlay: bool = True, trimmed: bool = False) -> Iterator[Shown]:
    """One run of the page: the overlay, then the answers, until it is done, is cancelled or a newer run of this visitor begins."""
    turn = TURNS.begin(session)

    def ended(notice: str = "") -> Shown:
        # Nothing may claim to go on, not even what an overtaken run has left; what is done stays.
        left = TURNS.undone.pop(session, None)
        return Shown(panel=left and answers.comparison(replace(left, stopped=True)), notice=notice)

    try:
        questions.clean(ask.question)
        for step in _steps(ask, percent, with_overlay, trimmed):
            if not TURNS.is_newest(session, turn):
                break
            if isinstance(step, answers.Written):
                TURNS.undone[session] = step
                if step.done:
                    del TURNS.undone[session]
                step = Shown(panel=answers.comparison(step))
            yield step
    except (UserError, ValueError, RuntimeError) as error:
        told = complaint(error)
        if TURNS.is_newest(session, turn):
            yield ended(told)
    if TURNS.is_stopped(session, turn):
        yield ended()


def _steps(ask: Ask, percent: float, with_overlay: bool, trimmed: bool) -> Iterator[Shown | answers.Written]:
    if not is_open(ask.model):
        yield answers.Written(opening=ask.model)
    # Held to the end of the run, so that no other model takes its place meanwhile.
    vlm = one_thread.apart(open_vlm, ask.model)
    vlm.fitting(ask.question)  # before it becomes a turn of the conversation
    if with_overlay or METHODS[ask.method].budgeted:
        yield Shown(overlay=look(ask, percent), asked=ask)
    yield from compare(ask, percent, trimmed)


def stream(vlm: Vlm, image: Encoded, question: str, side: Side, history: tuple[tuple[str, str], ...] = ()) -> Iterator[Answer]:
    """A side's answer as it grows, every PACE seconds, or at once where it is known; ``history``: its own conversation so far."""
    key = (vlm.name, image.key, question, side.key, history)
    known = ANSWERS.get(key)
    if known is not None:
        yield known
        return
    rankings = None if side.ranking is None else [side.ranking]
    answer = None
    written = one_thread.steps(vlm.answer([image], question, rankings, side.prune, MAX_NEW_TOKENS, side.kv, history))
    for answer in paced(written, lambda answer: answer.done):
        yield answer
    if answer is not None and answer.done:
        ANSWERS.put(key, answer.light())


def paced(items: Iterator[T], matters: Callable[[T], object]) -> Iterator[T]:
    """The items that must be shown, and of the others one every PACE seconds."""
    shown = 0.0
    for item in items:
        if matters(item) or time.monotonic() - shown >= PACE:
            yield item
            shown = time.monotonic()
