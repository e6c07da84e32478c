"""Checks what a user typed."""

import unicodedata

from vlm.errors import UserError

MAX_CHARACTERS = 2000


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
