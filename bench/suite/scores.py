"""The usual rule of each kind of benchmark: exact match, relaxed 5% (ChartQA), ANLS (DocVQA), recall of named objects."""

import re

from rapidfuzz.distance import Levenshtein

from training.questions import normalise, things


def exact(said: str, right: str) -> float:
    """1 where both are the same words, articles and case aside."""
    return float(normalise(said) == normalise(right))


def relaxed(said: str, right: str) -> float:
    """Numbers may be off by 5% (ChartQA, Masry et al. 2022), everything else is :func:`exact`."""
    wanted, found = (re.fullmatch(r"\D*(\d+(?:\.\d+)?)\D*", text) for text in (right, said))
    if not wanted:
        return exact(said, right)
    return float(found is not None and abs(float(found[1]) - float(wanted[1])) <= 0.05 * float(wanted[1]))


def anls(said: str, right: str) -> float:
    """Normalised Levenshtein similarity, 0 below one half (DocVQA, Mathew et al. 2021)."""
    similarity = Levenshtein.normalized_similarity(normalise(said), normalise(right))
    return similarity if similarity >= 0.5 else 0.0


def recall(said: str, right: str) -> float:
    """Share of the objects that are named; naming more things than there are counts against it."""
    named, there = things(said), things(right)
    hits = sum(min(named.count(thing), there.count(thing)) for thing in set(there))
    return hits / max(len(there), len(named), 1)
