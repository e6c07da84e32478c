"""What the reading tools do, as plain functions: from the picture in use to payloads and figures. Nothing here runs by itself."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import plotly.graph_objects as go
import torch

from pruning.kernels import unit_rows
from pruning.registry import METHODS, Method
from pruning.tokens import IMAGE, Ranking, keep_count
from pruning.tradeoff import Sweep, sweep
from viz import answers, compare, features, reasons, studio, tradeoff
from viz.studio import Ask, opened
from viz.style import name_of
from vlm import inside, one_thread, questions
from vlm.errors import UserError
from vlm.images import open_image
from vlm.model import Answer, Encoded, Vlm, last

SWEEPS = studio.Results(64)
MOST_ANSWERS = 4
DEFAULT_METHODS = ("idpruner", "topk", "divprune", "cdpruner", "scope", "visionzip")

ALONE = "The question is asked here without the turns before it."
NO_PATCHES = "{} keeps no patches, it shows the model a smaller picture: choose another method here."


@dataclass(frozen=True, eq=False)
class Scene:
    """The picture in use, as ranked: ``k`` of its patches are kept."""

    ask: Ask
    vlm: Vlm
    image: Encoded
    question: str
    method: Method
    ranking: Ranking
    k: int


class Reading(NamedTuple):
    """A payload for the browser, a figure with its title, and what else there is to say."""

    payload: dict | None = None
    figure: go.Figure | None = None
    title: str = ""
    note: str = ""


@one_thread.here
def scene(ask: Ask | None, percent: float) -> Scene:
    """Ranks the picture again; that takes milliseconds, the vision tower's output is kept.

    Raises:
        UserError: there is no picture yet, or it cannot be used.
    """
    if ask is None:
        raise UserError("Please choose or upload a picture first.")
    question, vlm = studio.pruned_by(ask), opened(ask.model)
    image, method = vlm.encode(open_image(ask.image)), studio.method_of(ask)
    k = keep_count(len(image.features), studio.share_of(percent))
    return Scene(ask, vlm, image, question, method, vlm.rank(image, question, method, k), k)


def swept(of: Scene) -> Sweep:
    """The sweep of the importance that IDPruner would have here, at the scene's budget: what a chosen point then keeps.

    Lambda does not enter it, so it is computed once for all of them.
    """
    method = studio.method_of(replace(of.ask, method="idpruner"))
    if "weights" in method.needs and of.vlm.scorer is None:
        method = METHODS["idpruner"]
    key = (of.ask.model, of.image.key, of.question, method.scorer, of.k)
    known = SWEEPS.get(key)
    if known is None:
        importance = of.vlm.rank(of.image, of.question, method).importance
        known = sweep(of.image.features.float(), importance, of.k)
        SWEEPS.put(key, known)
    return known


@one_thread.here
def trade_off(ask: Ask | None, percent: float, axis: str) -> Reading:
    """The trade-off figure, and the map of the method in use."""
    of = scene(ask, percent)
    if of.k < 2:
        raise UserError("One patch alone is neither redundant nor diverse: keep at least two to see the trade-off.")
    found = swept(of)
    current = tradeoff.nearest(found, of.method.key, ask.lam if of.method.takes_lambda else None)
    resting = current or tradeoff.nearest(found, "idpruner", ask.lam)
    payload = tradeoff.payload(of.image.picture, of.image.grid, resting)
    return Reading(payload, tradeoff.figure(found, axis, current), tradeoff.headline(found, axis))


def mapped(ask: Ask | None, percent: float) -> Scene:
    """A :func:`scene` whose patches can be drawn as kept and dropped.

    Raises:
        UserError: the method drops none.
    """
    of = scene(ask, percent)
    if of.method.after == IMAGE:
        raise UserError(NO_PATCHES.format(name_of(of.method.key)))
    return of


@one_thread.here
def feature_space(ask: Ask | None, percent: float) -> Reading:
    """Every patch in feature space."""
    of = mapped(ask, percent)
    return Reading(features.payload(of.image.picture, of.image.features, of.image.grid, of.ranking))


@one_thread.here
def rankings(of: Scene, keys: list[str]) -> tuple[dict[str, Ranking], str]:
    """The scene's picture ranked by every method; and what is to be said about those that cannot."""
    found, failed = {}, []
    for key in keys:
        try:
            found[key] = of.vlm.rank(of.image, of.question, studio.method_of(replace(of.ask, method=key)), of.k)
        except (UserError, ValueError) as error:
            failed.append(f"{name_of(key)} is left out: {error}")
    return found, " ".join(failed)


@one_thread.here
def side_by_side(ask: Ask | None, percent: float, first: str, second: str, keys: list[str]) -> Reading:
    """The map of two methods and the overlap matrix of all chosen ones."""
    of = scene(ask, percent)
    keys, whole = [key for key in keys if METHODS[key].after != IMAGE], [key for key in keys if METHODS[key].after == IMAGE]
    if no_map := [key for key in (first, second) if METHODS[key].after == IMAGE]:
        raise UserError(NO_PATCHES.format(name_of(no_map[0])))
    found, failed = rankings(of, list(dict.fromkeys([first, second, *keys])))
    if first not in found or second not in found:
        raise UserError(failed)
    failed = " ".join([failed, *(NO_PATCHES.format(name_of(key)) for key in whole)]).strip()
    names = (name_of(first), name_of(second))
    chosen = {key: found[key] for key in keys if key in found} or {key: found[key] for key in (first, second)}
    payload = compare.payload(of.image.picture, of.image.grid, found[first], found[second], names)
    return Reading(payload, compare.overlap_figure(chosen, of.k), compare.overlap_headline(chosen, of.k), failed)


@one_thread.here
def reason(ask: Ask | None, percent: float, token: int | None) -> Reading:
    """Why a patch was kept or dropped; the first patch that redundancy cost its place, where none is chosen.

    Raises:
        UserError: there is no such patch.
    """
    of = mapped(ask, percent)
    lam = reasons.lambda_of(of.method)
    found, said = None, reasons.unexplained(of.method)
    if lam is not None:
        units = unit_rows(of.image.features)
        cosine = units @ units.T
        try:
            found = reasons.explain(cosine, of.ranking, lam, of.k, first_loss(of.ranking, of.k) if token is None else token)
        except ValueError as error:
            raise UserError(str(error)) from error
        said = reasons.words(found, lam, of.k, len(of.ranking.order), of.image.grid[1])
    return Reading(reasons.payload(of.image.picture, of.image.grid, of.ranking, of.k, found) | {"words": said})


def first_loss(ranking: Ranking, k: int) -> int:
    """The most important patch that is dropped, or the last one of the order."""
    dropped = ranking.order[k:]
    return int(dropped[ranking.importance[dropped].argmax()]) if len(dropped) else int(ranking.order[-1])


def picked(data: object) -> int:
    """The patch that was clicked; what a browser sends is not trusted.

    Raises:
        UserError: it names none.
    """
    token = data.get("token") if isinstance(data, dict) else None
    if not isinstance(token, int) or isinstance(token, bool):
        raise UserError("Click a patch of the picture.")
    return token


def chosen(data: object) -> tuple[str, float | None]:
    """The method and lambda of a point that was clicked; what a browser sends is not trusted.

    Raises:
        UserError: the page has no such method.
    """
    key, lam = (data.get("method"), data.get("lam")) if isinstance(data, dict) else (None, None)
    if not isinstance(key, str) or key not in studio.PRUNERS:
        raise UserError("This point is drawn for comparison; the page cannot answer with it. Click a point of MMR, for one.")
    if not METHODS[key].takes_lambda:
        return key, None
    if not isinstance(lam, int | float) or not math.isfinite(lam) or not 0 <= lam <= 1:
        raise UserError("Lambda lies between 0 and 1.")
    return key, float(lam)


@torch.inference_mode()
def forced_logits(
    vlm: Vlm, image: Encoded, question: str, token_ids: list[int], ranking: Ranking | None = None, k: int = 0
) -> torch.Tensor:
    """Logits float32 [T, V] for each of ``token_ids`` given the ones before it: teacher forcing in one forward pass.

    ranking: of which the first ``k`` are kept; None keeps all. Positions go on as in :mod:`vlm.decode`.
    """
    if ranking is not None and ranking.after == IMAGE:
        image, ranking = vlm.smaller(image, k), None
    keep = None if ranking is None else ranking.keep(k)
    prompt = vlm.prompt([image], question, [keep], None if ranking is None else [ranking])
    given = torch.tensor([token_ids[:-1]], device=prompt.input_ids.device, dtype=prompt.input_ids.dtype)
    ahead = torch.arange(1, given.shape[1] + 1, device=given.device)
    arguments = prompt.kwargs() | {
        "input_ids": torch.cat([prompt.input_ids, given], 1),
        "position_ids": torch.cat([prompt.position_ids, prompt.position_ids[..., -1:] + ahead], -1),
        "attention_mask": None,
    }
    cut = nullcontext()
    if prompt.cut is not None:
        length = prompt.cut.length
        stays = torch.cat([prompt.cut.stays, length + ahead - 1])
        cut = inside.cutting(vlm.model, inside.Cut(prompt.cut.after, stays, length + len(ahead)))
    with vlm.lock, cut:
        return vlm.model(**arguments, use_cache=False, logits_to_keep=len(token_ids)).logits[0].float()


def divergences(ask: Ask | None, percent: float, keys: list[str]) -> Reading:
    """KL of every token of the full answer, under each chosen method; one forward pass a method."""
    of = scene(ask, percent)
    found, failed = rankings(of, keys or [of.ask.method])
    if not found:
        raise UserError(failed)
    question = questions.clean(ask.question)
    answer = last(studio.stream(of.vlm, of.image, question, studio.Side()))
    forced = of.vlm, of.image, question, answer.token_ids
    full = one_thread.run(forced_logits, *forced)

    def divergence(ranking: Ranking) -> compare.Divergence:
        return compare.divergence(full, forced_logits(*forced, ranking, of.k))

    # Method by method, so that others have their turn.
    apart = {key: one_thread.run(divergence, ranking) for key, ranking in found.items()}
    title = compare.divergence_headline(apart, of.k, len(of.ranking.order))
    alone = f" {ALONE}" if ask.before else ""
    return Reading(None, compare.divergence_figure(apart, answer.pieces), title, failed + alone)


def several(ask: Ask | None, percent: float, keys: list[str]) -> Iterator[str]:
    """The full answer beside those of the first ``MOST_ANSWERS`` methods, as HTML, while they are written."""
    of = scene(ask, percent)
    found, failed = rankings(of, (keys or [of.ask.method])[:MOST_ANSWERS])
    if not found:
        raise UserError(failed)
    sides = {"All patches": studio.Side()}
    for key, ranking in found.items():
        sides[name_of(key)] = studio.Side(ranking, studio.method_of(replace(of.ask, method=key)), studio.share_of(percent))
    written: dict[str, Answer | None] = dict.fromkeys(sides)
    for name, side in sides.items():
        for answer in studio.stream(of.vlm, of.image, questions.clean(ask.question), side):
            written[name] = answer
            yield answers.several(written)
