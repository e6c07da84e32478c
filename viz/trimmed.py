"""The third answer of the first page: pruned patches, and a KV cache that is read with fewer bits."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Protocol

from kvquant.cache import Setting
from kvquant.modes import Certified
from pruning.tokens import Ranking
from vlm.model import Answer, Encoded, Vlm

# No window: a pruned prompt is hardly longer than the usual window of 64, and nothing of it would be read with fewer bits.
SETTING = Setting(Certified(), window=0)
LABEL = "Third answer: pruned + trimmed bits (slower here: its reference kernel shows what is read, not how fast it could be)"


class Known(Protocol):
    """A store of finished answers, such as studio.Results."""

    def get(self, key: Hashable) -> Answer | None: ...

    def put(self, key: Hashable, value: Answer) -> None: ...


def stream(
    vlm: Vlm, key: Hashable, image: Encoded, question: str, ranking: Ranking, prune: float, limit: int, known: Known
) -> Iterator[Answer]:
    """Yields the answer after every token, or at once where ``known`` has it under this key; a finished one is kept there.

    key: of the pruned answer with every bit; limit: of new tokens.
    """
    key = (key, SETTING)
    finished = known.get(key)
    if finished is not None:
        yield finished
        return
    answer = None
    for answer in vlm.answer([image], question, [ranking], prune, limit, SETTING):
        yield answer
    if answer is not None and answer.done:
        known.put(key, answer)
