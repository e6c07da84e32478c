"""An opened VLM: image -> visual tokens -> (keep) -> prefill -> decode, every step timed."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from kvquant.cache import KVCache, Setting
from kvquant.modes import Trace
from pruning.registry import Method
from pruning.scorers import trained
from pruning.tokens import IMAGE, Ranking, VisualTokens, keep_count
from vlm import attention_probe, decode, device, inside, prefill, questions
from vlm.errors import UserError
from vlm.images import smaller

CACHED_IMAGES = 16


class Prompter(Protocol):
    """How a model family writes a prompt; user text never becomes a control token."""

    def prompt(self, question: str, visual_counts: list[int], history: tuple[tuple[str, str], ...] = ()) -> list[int]:
        """Ids of a whole prompt with ``visual_counts`` image tokens per image, after the earlier turns (question, answer)."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids, control tokens left out."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image as the model sees it.

    picture: RGB, resized; features: [N, D] after the merger; grid: merged (rows, columns); grid_thw: int64 [3];
    seen: what :mod:`vlm.attention_probe` captured; vision_s: seconds of the vision tower when it ran.
    """

    key: str
    picture: Image.Image
    features: torch.Tensor
    grid: tuple[int, int]
    grid_thw: torch.Tensor
    seen: dict
    vision_s: float


@dataclass
class Timings:
    """Wall seconds; ``prefill`` includes the first token, ``decode`` has one entry for every later one."""

    vision: float = 0.0
    scoring: float = 0.0
    selection: float = 0.0
    prefill: float = 0.0
    decode: list[float] = field(default_factory=list)

    @property
    def first_token(self) -> float:
        """From the image to the first token."""
        return self.vision + self.scoring + self.selection + self.prefill

    @property
    def total(self) -> float:
        """From the image to the last token."""
        return self.first_token + sum(self.decode)


@dataclass
class Answer:
    """An answer as far as it has been written; ``pieces`` are the texts of its tokens and join to ``text``.

    traces: ``traces[step][layer]``, what the newest decode steps have read of the KV cache; empty without a cache setting.
    reader: the kernel that reads that cache, and why it does. history: the earlier turns (question, answer).
    """

    method: str
    visual_tokens: int
    kept_tokens: int
    prompt_tokens: int
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    done: bool = False
    traces: list[tuple[Trace, ...]] = field(default_factory=list)
    reader: str = ""
    history: tuple[tuple[str, str], ...] = ()

    def light(self) -> "Answer":
        """A copy to keep: of what was read of every token, megabytes an answer, only the means."""
        return replace(self, traces=[tuple(trace.totals() for trace in step) for step in self.traces])


@dataclass(eq=False)
class Vlm:
    """A loaded model with what it needs to be asked; one question runs at a time.

    scorer: the trained importance for this model's tokens, or None, and then ``no_scorer`` says why.
    """

    name: str
    model: Qwen2_5_VLForConditionalGeneration
    prompter: Prompter
    processor: Qwen2VLImageProcessorPil
    placement: device.Placement
    scorer: trained.ScorerWeights | None = None
    no_scorer: str = "None was opened with it."

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self._encoded: OrderedDict[str, Encoded] = OrderedDict()

    @torch.inference_mode()
    def encode(self, picture: Image.Image) -> Encoded:
        """Runs the vision tower on an RGB picture, or returns what the same pixels gave before."""
        return self._remembered(picture, do_resize=True)

    @torch.inference_mode()
    def smaller(self, image: Encoded, k: int) -> Encoded:
        """The same picture in about ``k`` tokens, whole rows and columns, however few the model was made for."""
        vision = self.model.config.vision_config
        cell = vision.patch_size * vision.spatial_merge_size
        return self._remembered(smaller(image.picture, k / len(image.features), cell), do_resize=False)

    def _remembered(self, picture: Image.Image, do_resize: bool) -> Encoded:
        key = hashlib.sha256(repr((picture.size, do_resize)).encode() + picture.tobytes()).hexdigest()
        with self.lock:
            if key not in self._encoded:
                self._encoded[key] = self._encode(key, picture, do_resize)
            self._encoded.move_to_end(key)
            while len(self._encoded) > CACHED_IMAGES:
                self._encoded.popitem(last=False)
            return self._encoded[key]

    def _encode(self, key: str, picture: Image.Image, do_resize: bool) -> Encoded:
        inputs = self.processor(images=[picture], do_resize=do_resize, return_tensors="pt")
        where = self.placement.device
        pixels, grid = inputs["pixel_values"].to(where, self.placement.dtype), inputs["image_grid_thw"].to(where)
        with attention_probe.capture(self.model.model.visual) as seen:
            device.synchronise(where)
            began = time.perf_counter()
            features = self.model.get_image_features(pixels, grid).pooler_output[0]
            device.synchronise(where)
            took = time.perf_counter() - began
        merge = self.model.config.vision_config.spatial_merge_size
        rows, columns = int(grid[0, 1]) // merge, int(grid[0, 2]) // merge
        side = self.model.config.vision_config.patch_size * merge
        seen_as = picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        return Encoded(key, seen_as, features, (rows, columns), grid[0], seen, took)

    def forget(self) -> None:
        """Empties the image cache, so that the next question is measured cold."""
        with self.lock:
            self._encoded.clear()

    def use_scorer(self, path: Path) -> None:
        """Scores importance with the trained scorer in a safetensors file from now on.

        Raises:
            UserError: the file cannot be used, or was made for tokens of another width.
        """
        try:
            weights = trained.load(path)
        except ValueError as error:
            raise UserError(str(error)) from error
        width = self.model.config.text_config.hidden_size
        if weights.width != width:
            raise UserError(f"{path.name} was trained for tokens of width {weights.width}; those of {self.name} have {width}.")
        self.scorer = weights.to(self.placement.device)

    def fitting(self, question: str) -> str:
        """The question without what cannot be typed. Raises UserError where it is empty or too long for this model."""
        return questions.fitting(question, self.prompter.encode)

    @torch.inference_mode()
    def visual_tokens(
        self, image: Encoded, question: str, needs: frozenset[str] = frozenset(), after: int = inside.LOOK_AFTER
    ) -> VisualTokens:
        """What a pruning method may look at; ``needs`` names the optional parts of :class:`pruning.tokens.VisualTokens`.

        after: how many language layers run before the part "layer" looks.

        Raises:
            UserError: the weights of a trained scorer are needed and this model has none.
        """
        if "weights" in needs and self.scorer is None:
            raise UserError(f"{self.name} has no trained scorer: choose another importance or method. {self.no_scorer}")
        tower, seen, grid = self.model.model.visual, image.seen, image.grid_thw
        last, middle = attention_probe.last_layer(tower), attention_probe.middle_layer(tower)
        parts = {
            "question": lambda: self._embedded(question),
            "attention": lambda: attention_probe.mean_query_attention(tower, seen, grid),
            "weights": lambda: self.scorer,
            "received": lambda: attention_probe.received_attention(tower, seen, grid, last),
            "middle": lambda: attention_probe.received_attention(tower, seen, grid, middle),
            "keys": lambda: attention_probe.merged_keys(tower, seen, grid),
            "layer": lambda: self._look(image, question, after),
        }
        return VisualTokens(image.features.float(), image.grid, **{name: parts[name]() for name in sorted(needs)})

    def _embedded(self, question: str) -> torch.Tensor:
        ids = torch.tensor(self.prompter.encode(question), dtype=torch.long, device=self.placement.device)
        return self.model.get_input_embeddings()(ids).float()

    def _look(self, image: Encoded, question: str, after: int):
        prompt = self.prompt([image], question, [None])
        # Its hooks must not meet another thread's step.
        with self.lock:
            return inside.look(self.model, prompt, after)

    def rank(self, image: Encoded, question: str, method: Method, k: int | None = None) -> Ranking:
        """The method's order of this image's tokens; getting what it needs counts as scoring.

        k: how many are to be kept, for a budgeted method. What looks into the language model (FastV, DART, LastTokenAttention) sees
        the prompt of this image and question alone, without earlier turns and other images. Language layers that a method prunes
        behind run again in the answer's prefill and count there.

        Raises:
            UserError: the question is empty or too long, or the method needs a trained scorer and there is none.
            ValueError: a budgeted method got no k.
        """
        began = time.perf_counter()
        tokens = self.visual_tokens(image, self.fitting(question), method.needs, max(method.after, 0) or inside.LOOK_AFTER)
        device.synchronise(self.placement.device)
        gathered = time.perf_counter() - began
        if method.after > 0:
            gathered -= tokens.layer.forward_s
        ranking = method(tokens, k)
        return replace(ranking, scoring_s=ranking.scoring_s + gathered)

    def answer(
        self,
        images: list[Encoded],
        question: str,
        rankings: list[Ranking] | None = None,
        prune: float = 0.0,
        max_new_tokens: int = 48,
        kv: Setting | None = None,
        history: tuple[tuple[str, str], ...] = (),
    ) -> Iterator[Answer]:
        """Yields the answer after every token; with ``rankings`` the fraction ``prune`` of each image's tokens is left out.

        kv: how the KV cache is stored and read; None is transformers' default cache. history: the earlier turns (question,
        answer) about the same images; they are read again.

        Raises:
            UserError: the question is empty or too long.
            ValueError: a ranking was made for another number of tokens, the rankings prune in different places, or no token may
                be written.
        """
        if max_new_tokens < 1:
            raise ValueError(f"An answer has at least one token, not {max_new_tokens}.")
        question = self.fitting(question)
        visual_tokens = sum(len(image.features) for image in images)
        keeps: list[np.ndarray | None] = [None] * len(images)
        if rankings is not None:
            keeps = [r.keep(keep_count(len(r.order), prune)) for r in rankings]
            if len({r.after for r in rankings}) > 1:
                raise ValueError("All images of a question are pruned in the same place of the model.")
        if rankings and rankings[0].after == IMAGE:
            images = [self.smaller(image, len(keep)) for image, keep in zip(images, keeps, strict=True)]
            keeps = [None] * len(images)
        answer = Answer(
            method=rankings[0].method if rankings else "none",
            visual_tokens=visual_tokens,
            kept_tokens=sum(len(i.features) if k is None else len(k) for i, k in zip(images, keeps, strict=True)),
            prompt_tokens=0,
            history=history,
        )
        answer.timings.vision = sum(image.vision_s for image in images)
        if rankings:
            answer.timings.scoring = sum(r.scoring_s for r in rankings)
            answer.timings.selection = sum(r.selection_s for r in rankings)
        cache = None if kv is None else KVCache(self.model.config, kv)
        yield from self._decode(answer, self.prompt(images, question, keeps, rankings, history), max_new_tokens, cache)

    def prompt(
        self,
        images: list[Encoded],
        question: str,
        keeps: list[np.ndarray | None],
        rankings: list[Ranking] | None = None,
        history: tuple[tuple[str, str], ...] = (),
    ) -> prefill.PrunedPrompt:
        """The pruned single-row prompt of a question about ``images``; ``rankings`` say what is merged, and pruned where."""
        visual = [visual_input(*parts) for parts in zip(images, keeps, rankings or [None] * len(images), strict=True)]
        ids = self.prompter.prompt(question, [len(image.features) for image in images], history)
        with torch.inference_mode():
            return prefill.build(self.model, [(ids, visual)])

    def _decode(self, answer: Answer, prompt: prefill.PrunedPrompt, limit: int, cache: KVCache | None) -> Iterator[Answer]:
        answer.prompt_tokens = prompt.input_ids.shape[1]
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        steps = decode.steps(self.model, prompt, limit, cache)
        for index in range(limit):
            # Locked step by step: an answer that nobody reads on must not block the others.
            with self.lock:
                step = next(steps)
            if index:
                answer.timings.decode.append(step.seconds)
            else:
                answer.timings.prefill = step.seconds
            if cache is not None:
                answer.traces, answer.reader = cache.traces, cache.reader
            token = int(step.token[0])
            answer.token_ids.append(token)
            answer.logprobs.append(float(step.logprob[0]))
            ended = token in ends
            text = self.prompter.decode(answer.token_ids[:-1] if ended else answer.token_ids)
            answer.done = ended or index + 1 == limit
            if not answer.done:
                # A character may take several tokens; it is written when its last one is there.
                text = text.rstrip("\N{REPLACEMENT CHARACTER}")
            answer.pieces.append(text[len(answer.text) :])
            answer.text = text
            yield answer
            if ended:
                return


def visual_input(image: Encoded, keep: np.ndarray | None, ranking: Ranking | None = None) -> prefill.VisualInput:
    """An image as it goes into a prompt; ``keep`` None shows it whole."""
    if keep is None or ranking is None:
        return prefill.VisualInput(image.features, image.grid_thw, keep)
    return prefill.VisualInput(image.features, image.grid_thw, keep, ranking.merged, ranking.after)


def last(answers: Iterator[Answer]) -> Answer:
    """Runs an answer to its end."""
    answer = None
    for answer in answers:  # noqa: B007  (the last one is what is wanted)
        pass
    return answer
