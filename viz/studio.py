"""What the page does, as plain functions: from the controls' values to an overlay payload and to streamed answers."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from html import escape

from pruning.registry import METHODS, SCORERS, Method
from pruning.tokens import Ranking, keep_count
from viz import answers, overlay
from vlm import questions
from vlm.errors import UserError
from vlm.images import open_image
from vlm.model import Answer, Encoded, Vlm
from vlm.open import open_vlm

MAX_NEW_TOKENS = 48
KEPT_RESULTS = 256
PRUNERS = {key: method for key, method in METHODS.items() if key != "none"}


@dataclass(frozen=True)
class Ask:
    """The controls' values, as far as they decide the order of the patches."""

    model: str
    image: str | None
    question: str
    method: str
    scorer: str
    lam: float


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


def method_of(ask: Ask) -> Method:
    """The registered method with the chosen importance and lambda where it takes them."""
    method = METHODS[ask.method]
    if method.takes_scorer and ask.scorer in SCORERS:
        method = method.with_(scorer=SCORERS[ask.scorer])
    return method.with_(lam=ask.lam) if method.takes_lambda else method


def _prepare(ask: Ask) -> tuple[Vlm, Encoded, Ranking, Method]:
    question = questions.clean(ask.question)
    vlm = open_vlm(ask.model)
    image = vlm.encode(open_image(ask.image))
    method = method_of(ask)
    key = (ask.model, image.key, question, method)
    ranking = RANKINGS.get(key)
    if ranking is None:
        ranking = vlm.rank(image, question, method)
        RANKINGS.put(key, ranking)
    return vlm, image, ranking, method


def look(ask: Ask) -> tuple[dict | None, str]:
    """(overlay payload, notice): every patch's rank and importance, or None and a sentence."""
    try:
        _, image, ranking, method = _prepare(ask)
    except UserError as error:
        return None, notice(str(error))
    title = method.label + (f", lambda {ask.lam:g}" if method.takes_lambda else "")
    scorer = (method.scorer or SCORERS["neg-cos-mean"]).label
    value = overlay.payload(image.picture, image.features, image.grid, ranking, title, scorer)
    return value, ""


def compare(ask: Ask, percent: float) -> Iterator[tuple[str, str]]:
    """Streams (answers panel, notice): the full answer, then the pruned one, each token as it is decoded."""
    try:
        prune = min(max(float(percent) / 100, 0.0), 0.999)
        vlm, image, ranking, method = _prepare(ask)
        question = questions.clean(ask.question)
        base = (ask.model, image.key, question)
        budget = keep_count(len(ranking.order), prune)
        full = pruned = None
        for full in _stream(vlm, (*base, None), image, question, None, 0.0):
            yield answers.comparison(full, None, vlm.placement.reason), ""
        for pruned in _stream(vlm, (*base, method, budget), image, question, ranking, prune):
            yield answers.comparison(full, pruned, vlm.placement.reason), ""
    except UserError as error:
        yield answers.comparison(None, None, ""), notice(str(error))


def _stream(vlm: Vlm, key: Hashable, image: Encoded, question: str, ranking: Ranking | None, prune: float) -> Iterator[Answer]:
    known = ANSWERS.get(key)
    if known is not None:
        yield known
        return
    rankings = None if ranking is None else [ranking]
    answer = None
    for answer in vlm.answer([image], question, rankings, prune, MAX_NEW_TOKENS):
        yield answer
    if answer is not None and answer.done:
        ANSWERS.put(key, answer)
