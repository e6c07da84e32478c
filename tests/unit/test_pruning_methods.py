"""The published selectors against plain transcriptions of their formulas, and by what each promises."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from pruning.registry import METHODS
from pruning.selectors import (
    CDPruner,
    Dart,
    DivPrune,
    DownSampling,
    FastV,
    HiPrune,
    IDSelection,
    Scope,
    TopKFarthest,
    VisionZip,
    VisPruner,
)
from pruning.selectors.hiprune import neighbours
from pruning.selectors.visionzip import VisionZip as Zip
from pruning.tokens import VisualTokens, normalise
from tests.unit.tiny import assert_close, random_tokens

SEEDS = range(4)
N = 30


@pytest.fixture(params=SEEDS)
def tokens(request) -> VisualTokens:
    return random_tokens(request.param, 5, 6)


def cosines(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    """float64 [N, M], straight from the definition."""
    y = x if y is None else y
    return cosine_similarity(x.double()[:, None], y.double()[None], dim=-1)


def ranked(values: torch.Tensor) -> list[int]:
    return sorted(range(len(values)), key=lambda i: (-float(values[i]), i))


def kept(key: str, tokens: VisualTokens, k: int) -> list[int]:
    return METHODS[key](tokens, k).keep(k).tolist()


def test_divprune_keeps_the_largest_smallest_distance(tokens):
    distance = 1 - cosines(tokens.features)
    distance.fill_diagonal_(torch.inf)
    order = [int(distance.min(1).values.argmax())]
    while len(order) < N:
        nearest = distance[:, order].min(1).values
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    assert METHODS["divprune"](tokens).order.tolist() == order
    # The greedy answer is at least half of the best smallest distance (Gonzalez 1985); here among a few tokens.
    few = VisualTokens(tokens.features[:8], (2, 4))
    first = DivPrune()(few, np.zeros(8, np.float32))[:3]
    d = (1 - cosines(few.features)).numpy()
    smallest = {c: min(d[a, b] for a, b in itertools.combinations(c, 2)) for c in itertools.combinations(range(8), 3)}
    assert smallest[tuple(sorted(first.tolist()))] >= 0.3 * max(smallest.values())


@pytest.mark.parametrize("k", [1, 4, 5, 9, 17, 30])
def test_dart_takes_pivots_and_what_is_least_like_them(tokens, k):
    view = tokens.layer
    order = ranked(view.visual_keys.abs().sum(1))[: min(4, k)]
    pivots = [view.visual[i] for i in order] + [view.text[i] for i in ranked(view.text_keys.abs().sum(1))[:4]]
    share = -(-(k - len(order)) // len(pivots))
    for pivot in pivots:
        likeness = cosines(view.visual, pivot[None])[:, 0]
        rest = sorted((i for i in range(N) if i not in order), key=lambda i: float(likeness[i]))
        order += rest[: min(share, k - len(order))]
    assert METHODS["dart"](tokens, k).order[:k].tolist() == order
    assert len(set(order)) == k


def test_cdpruner_picks_what_adds_most_to_the_log_determinant(tokens):
    relevance = normalise(cosines(tokens.features, tokens.question.mean(0, keepdim=True))[:, 0]) + 1e-6
    kernel = relevance[:, None] * cosines(tokens.features).numpy() * relevance[None]
    order = []
    while len(order) < 12:
        gains = [-np.inf if i in order else np.linalg.slogdet(kernel[np.ix_([*order, i], [*order, i])])[1] for i in range(N)]
        order.append(int(np.argmax(gains)))
    assert METHODS["cdpruner"](tokens).order[:12].tolist() == order


def test_scope_picks_the_largest_gain_in_coverage_times_attention(tokens):
    s, a = cosines(tokens.features).numpy(), tokens.received.double().numpy()
    cover, order = np.zeros(N), []
    while len(order) < N:
        gain = a * np.maximum(s - cover[None], 0).sum(1)
        gain[order] = -1
        order.append(int(gain.argmax()))
        cover = np.maximum(cover, s[order[-1]])
    assert METHODS["scope"](tokens).order[:20].tolist() == order[:20]


def test_coverage_gains_of_scope_fall_when_attention_is_equal(tokens):
    flat = VisualTokens(tokens.features, tokens.grid, received=torch.full((N,), 1 / N))
    s, cover, gains = cosines(tokens.features).numpy(), np.zeros(N), []
    for pick in Scope()(flat, np.zeros(N, np.float32)):
        gains.append(np.maximum(s[pick] - cover, 0).sum())
        cover = np.maximum(cover, s[pick])
    assert np.all(np.diff(gains) < 1e-6)


@pytest.mark.parametrize("k", [1, 6, 13, 30])
def test_visionzip_keeps_the_attended_and_averages_the_rest_into_targets(tokens, k):
    targets = max(1, round(k * 10 / 64))
    dominant = ranked(tokens.received)[: k - targets]
    others = [i for i in range(N) if i not in dominant]
    goal = others[:: max(1, len(others) // targets)][:targets]
    members = {t: [t] for t in goal}
    likeness = cosines(tokens.keys)
    for i in others:
        if i not in goal:
            members[max(goal, key=lambda t: float(likeness[i, t]))].append(i)
    ranking = METHODS["visionzip"](tokens, k)
    assert set(ranking.keep(k).tolist()) == set(dominant) | set(goal)
    expected = torch.stack([tokens.features[members.get(i, [i])].mean(0) for i in ranking.keep(k).tolist()])
    assert_close(ranking.merged, expected, 1e-5, "merged features")
    assert sum(map(len, members.values())) + len(dominant) == N, "every token goes somewhere"


def test_visionzip_without_anything_to_merge_changes_nothing(tokens):
    assert torch.equal(METHODS["visionzip"](tokens, N).merged, tokens.features)


@pytest.mark.parametrize("k", [1, 4, 5, 20, 30])
def test_hiprune_keeps_anchors_their_neighbours_and_the_attended(tokens, k):
    count = max(round(k * 0.1 / 5), 1 if k >= 5 else 0)
    chosen = set()
    for anchor in ranked(tokens.middle)[:count]:
        y, x = divmod(anchor, 6)
        cross = [(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        chosen |= {v * 6 + u for v, u in cross if 0 <= v < 5 and 0 <= u < 6}
    for i in ranked(tokens.received):
        if len(chosen) < k:
            chosen.add(i)
    assert kept("hiprune", tokens, k) == sorted(chosen)


def test_neighbours_end_at_the_edge():
    assert neighbours(np.array([5]), 2, 6).tolist() == [4, 11]
    assert neighbours(np.array([0, 7]), 2, 6).tolist() == [1, 6, 8]
    assert len(HiPrune(alpha=1.0)(random_tokens(0, 5, 6), np.zeros(N, np.float32), 8)) == N


@pytest.mark.parametrize("k", [1, 2, 7, 16, 30])
def test_vispruner_weeds_out_duplicates_round_by_round(tokens, k):
    by_attention, likeness = ranked(tokens.received), cosines(tokens.features)
    count = int(k * 0.5)
    rest = by_attention[count:]
    while len(rest) > k - count:
        first, second = rest[::2], rest[1::2]
        first = sorted(first, key=lambda i: -max(float(likeness[i, j]) for j in second))
        rest = first[min(8, len(rest) - (k - count)) :] + second
    assert kept("vispruner", tokens, k) == sorted(by_attention[:count] + rest)


def test_fastv_is_top_k_by_the_last_token(tokens):
    assert METHODS["fastv"](tokens).order.tolist() == ranked(tokens.layer.attention)


def test_id_selection_suppresses_what_is_like_the_pick(tokens):
    score, s = normalise(tokens.layer.attention).astype(np.float64), cosines(tokens.features).numpy()
    order = []
    while len(order) < N:
        best = max((i for i in range(N) if i not in order), key=lambda i: (score[i], -i))
        order.append(best)
        score = score - np.exp(-20 * (1 - s[best]) ** 2) * max(score[best], 0)
    assert METHODS["id-selection"](tokens).order.tolist() == order
    flat = IDSelection(gamma=1e9)(tokens, normalise(tokens.layer.attention))
    assert flat.tolist() == ranked(tokens.layer.attention), "nothing is alike, so nothing is suppressed"


@pytest.mark.parametrize("k", [1, 7, 30])
def test_the_hybrid_is_top_k_at_one_end_and_farthest_point_at_the_other(tokens, k):
    method = METHODS["topk-farthest"]
    assert set(method.with_(lam=1.0)(tokens, k).keep(k)) == set(METHODS["topk"](tokens).keep(k))
    assert method.with_(lam=0.0)(tokens, k).order[:k].tolist() == METHODS["farthest"](tokens).order[:k].tolist()
    pool = set(METHODS["topk"](tokens).order[: k + round(0.5 * (N - k))].tolist())
    assert set(method(tokens, k).order[:k].tolist()) <= pool


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionZip(contextual=1.5), "contextual is a share of the budget"),
        (lambda: HiPrune(alpha=-0.1), "alpha is a share"),
        (lambda: VisPruner(important=float("nan")), "important is a share"),
        (lambda: TopKFarthest(lam=2.0), "lambda must lie"),
        (lambda: CDPruner(floor=0.0), "floor must be positive"),
        (lambda: Scope(alpha=-1.0), "alpha must not be negative"),
        (lambda: IDSelection(gamma=-1.0), "gamma must not be negative"),
        (lambda: FastV(after=0), "prunes after layer 1 or later, not 0"),
        (lambda: Dart(visual_pivots=0, text_pivots=0), "at least one pivot"),
        (lambda: DownSampling()(random_tokens(0, 2, 2), np.zeros(4, np.float32)), "say how many tokens are kept"),
        (lambda: Zip()(VisualTokens(torch.ones(4, 2), (2, 2)), np.zeros(4, np.float32), 2), "VisionZip needs the keys"),
    ],
)
def test_parameters_that_make_no_sense_are_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_equal_tokens_break_no_method():
    flat = random_tokens(0, 4, 4)
    same = torch.full_like(flat.features, 0.25)
    level = torch.full((16,), 1 / 16)
    tokens = VisualTokens(same, (4, 4), same[:2], level, flat.weights, level, level, torch.zeros(16, 8), flat.layer)
    for key, method in METHODS.items():
        assert len(method(tokens, 5).keep(5)) == 5, key
