"""Asks a model the suite: encode once, rank by every method, answer in batches.

Batches change nothing but the time: a left-padded batch equals its single runs (tests/unit/test_vlm_exactness.py). Prompts that
are pruned inside the language model run one by one.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from bench.suite.tasks import Item
from pruning.registry import METHODS, Method
from pruning.tokens import IMAGE, keep_count
from vlm import inside, prefill
from vlm.model import Vlm, visual_input

BATCH_TOKENS = 4096
MAX_NEW_TOKENS = 40
GREY = (122, 117, 104)


@dataclass(frozen=True)
class Setting:
    """A column of the table: a method at one pruned share; ``lam`` and ``seed`` where the method takes them.

    One name stands outside the registry: "blank" shows the model a grey picture.
    """

    method: str
    prune: float = 0.0
    lam: float | None = None
    seed: int | None = None
    scorer: str | None = None

    def configured(self) -> Method:
        """The method with its settings."""
        return METHODS[self.method].with_(lam=self.lam, seed=self.seed, scorer=self.scorer)


@dataclass(frozen=True)
class Request:
    """One answer to be written: which item and setting, and the pruned prompt's parts."""

    item: int
    setting: Setting
    ids: list[int]
    visual: prefill.VisualInput

    @property
    def length(self) -> int:
        """Tokens of the pruned prompt."""
        kept = self.visual.keep
        return len(self.ids) - (0 if kept is None or self.alone else len(self.visual.features) - len(kept))

    @property
    def alone(self) -> bool:
        """Whether it is pruned inside the language model, so that no other may stand in its batch."""
        return self.visual.after > 0


def requests(vlm: Vlm, index: int, item: Item, settings: Iterable[Setting]) -> Iterator[Request]:
    """The prompts of one item under every setting."""
    image = vlm.encode(item.picture)
    rankings = {}
    for setting in settings:
        shown, keep, ranking = image, None, None
        if setting.method == "blank":
            shown = vlm.encode(Image.new("RGB", item.picture.size, GREY))
        elif setting.prune:
            method, count = setting.configured(), keep_count(len(image.features), setting.prune)
            if method.after == IMAGE:
                shown = vlm.smaller(image, count)
            else:
                key = (setting.method, setting.lam, setting.seed, setting.scorer, count if method.budgeted else None)
                if key not in rankings:
                    rankings[key] = vlm.rank(image, item.question, method, count)
                ranking = rankings[key]
                keep = ranking.keep(count)
        ids = vlm.prompter.prompt(item.question, [len(shown.features)])
        yield Request(index, setting, ids, visual_input(shown, keep, ranking))


@torch.inference_mode()
def write(vlm: Vlm, batch: list[Request]) -> list[str]:
    """Greedy answers of a batch."""
    prompt = prefill.build(vlm.model, [(request.ids, [request.visual]) for request in batch])
    with inside.cutting(vlm.model, prompt.cut) if prompt.cut else nullcontext():
        out = vlm.model.generate(**prompt.kwargs(), do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
    ends = set(vlm.model.generation_config.eos_token_id)
    texts = []
    for row in out[:, prompt.input_ids.shape[1] :].tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        texts.append(vlm.prompter.decode(row[:stop]))
    return texts


def run(vlm: Vlm, items: list[Item], settings: list[Setting]) -> dict[Setting, np.ndarray]:
    """Scores [items] for every setting."""
    scores = {setting: np.full(len(items), np.nan) for setting in settings}
    waiting: list[Request] = []

    def flush() -> None:
        # Rows of like length waste no padding; those that stand alone come first, from the end.
        waiting.sort(key=lambda request: (request.alone, request.length))
        while waiting:
            size = 1 if waiting[-1].alone else max(1, BATCH_TOKENS // waiting[-1].length)
            batch = waiting[-size:]
            del waiting[-size:]
            for request, text in zip(batch, write(vlm, batch), strict=True):
                scores[request.setting][request.item] = items[request.item].score(text)

    for index, item in enumerate(items):
        waiting.extend(requests(vlm, index, item, settings))
        if len(waiting) >= 384 or index + 1 == len(items):
            flush()
    return scores
