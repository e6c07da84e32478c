"""Checks what a user typed."""

import unicodedata
from collections.abc import Callable

from vlm.errors import UserError

MAX_CHARACTERS = 2000
# Of prefill that nobody can interrupt while other visitors wait: some seconds on two cores.
MAX_TOKENS = 1024


def clean(question: str) -> str:
    """The question without control characters and outer blanks.

    Raises:
        UserError: it is empty or longer than ``MAX_CHARACTERS``.
    """
    # Not str.isprintable(): it refuses the joiners inside emoji and the blanks of other scripts.
    text = "".join(c for c in (question or "") if unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t").strip()
    if not text:
        raise UserError("Please type a question about the picture.")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"The question has {len(text):,} characters; at most {MAX_CHARACTERS:,} fit. Please shorten it.")
    return text


def fitting(question: str, encode: Callable[[str], list[int]]) -> str:
    """The question as :func:`clean` leaves it, if ``encode`` makes few enough tokens of it.

    Raises:
        UserError: it is empty, or too long in characters or in tokens.
    """
    text = clean(question)
    if (count := len(encode(text))) > MAX_TOKENS:
        raise UserError(f"The question has {count:,} tokens for this model; at most {MAX_TOKENS:,} fit. Please shorten it.")
    return text
