"""An answer that was written while its KV cache was read with fewer bits: what was read, of which tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from kvquant.cache import Setting
from kvquant.half_planes import BLOCK
from kvquant.modes import Certified, Exact, Mode, Paper, Trace
from vlm.errors import UserError
from vlm.model import Answer, Encoded, Vlm
from vlm.prefill import PrunedPrompt

MODES = {"exact": "Exact: all 16 bits", "paper": "The paper's rule (AlignedKV)", "certified": "Certified error"}
KEYS, VALUES = 0, 1


@dataclass(frozen=True, eq=False)
class Run:
    """A finished answer with the traces of its decode steps.

    model: the name it can be opened by again; prompt: what the answer went on from; grid: (rows, columns) of the picture's
    patches; patch: int64 [P], the patch that a token of the prompt stands for, -1 for text; words: texts of the prompt's
    tokens and of the answer's, [P + S + 1], "" for patches; bits: float16 [S, 2, layers, KV heads, P + S], bits read per number
    of K (0) and V (1) at each decode step, nan for tokens that were not written yet; planed: int [S], tokens in planes: the
    first ones, the others are whole. Step s reads the token ``words[P + s]`` last and writes ``words[P + s + 1]``.
    """

    model: str
    where: str
    question: str
    setting: Setting
    answer: Answer
    prompt: PrunedPrompt
    picture: Image.Image
    grid: tuple[int, int]
    patch: np.ndarray
    words: list[str]
    bits: np.ndarray
    planed: np.ndarray

    @property
    def steps(self) -> int:
        return len(self.bits)

    @property
    def mean_bits(self) -> tuple[float, float]:
        """Bits per number of K and of V, averaged over steps, layers, heads and tokens, the whole tokens included."""
        return tuple(float(np.nanmean(self.bits[:, which], dtype=np.float64)) for which in (KEYS, VALUES))

    @property
    def bytes_share(self) -> float:
        """Bytes read, with all steps, constants and whole tokens, over what an ordinary 16-bit cache reads."""
        traces = [trace for step in self.answer.traces for trace in step]
        return sum(t.bytes_read for t in traces) / sum(t.bytes_whole for t in traces)

    @property
    def worst_bound(self) -> float:
        """The largest proven ||o' - o|| / ||o'|| of any query head, layer and step; infinite where nothing is proven."""
        ratios = [float((t.bound / t.norm.clamp(min=1e-30)).max()) for step in self.answer.traces for t in step]
        return max(ratios)


def setting_of(mode: str, error: float, window: float) -> Setting:
    """The cache of the tab's controls: mode is a key of ``MODES``, error counts for "certified" only, window in tokens.

    Raises:
        UserError: a control holds what it cannot hold.
    """
    kinds = {"exact": lambda: Exact(), "paper": lambda: Paper(), "certified": lambda: Certified(float(error))}
    if mode not in kinds:
        raise UserError(f"Unknown way of reading {mode!r}. Choose one of: {', '.join(kinds)}.")
    try:
        # Halves: an exact read of 16 bits is what the other modes are compared with, not the model's own 32.
        return Setting(kinds[mode](), halves=mode == "exact", window=int(window or 0))
    except (TypeError, ValueError, OverflowError) as error_:
        raise UserError(str(error_)) from error_


def describe(setting: Setting) -> str:
    """The setting in words."""
    whole = f"the newest {setting.window} tokens whole" if setting.window else "no window of whole tokens"
    return f"{describe_mode(setting.mode)}, {whole}"


def describe_mode(mode: Mode) -> str:
    """("certified error 0.02")."""
    if isinstance(mode, Exact):
        return "all 16 bits"
    return "the paper's rule" if isinstance(mode, Paper) else f"certified error {mode.error:g}"


def planed_tokens(setting: Setting, prompt: int, steps: int) -> np.ndarray:
    """int [steps]: tokens in planes at every decode step after a prompt of ``prompt`` tokens (see kvquant.store)."""
    length = prompt + 1 + np.arange(steps)
    return np.maximum(0, length - setting.window) // BLOCK * BLOCK


def bits_of(traces: list[tuple[Trace, ...]]) -> np.ndarray:
    """float16 [S, 2, layers, KV heads, L] of a batch of one, L the length at the last step; nan for tokens still to come."""
    last = traces[-1][0].key_bits
    found = np.full((len(traces), 2, len(traces[-1]), *last.shape[1:]), np.nan, np.float16)
    for step, layers in enumerate(traces):
        for layer, trace in enumerate(layers):
            for which, bits in ((KEYS, trace.key_bits), (VALUES, trace.value_bits)):
                found[step, which, layer, :, : bits.shape[-1]] = bits[0].cpu().numpy()
    return found


def words_of(vlm: Vlm, prompt: PrunedPrompt, answer: Answer) -> tuple[np.ndarray, list[str]]:
    """(which tokens of the prompt are visual, bool [P]; texts of the prompt's and the answer's tokens, "" for visual ones)."""
    ids = prompt.input_ids[0].tolist()
    visual = np.array(ids) == vlm.model.config.image_token_id
    words = [
        "" if is_patch else vlm.prompter.decode([token]) or f"control token {token}"
        for token, is_patch in zip(ids, visual, strict=True)
    ]
    return visual, words + [piece or " (end)" for piece in answer.pieces]


def finished(
    vlm: Vlm, image: Encoded, question: str, keep: np.ndarray | None, setting: Setting, prompt: PrunedPrompt, answer: Answer
) -> Run:
    """The run of an answer about one image, of which the patches ``keep`` (None: all) were in the prompt.

    Raises:
        UserError: the answer was over before anything was read from the cache.
    """
    if not answer.traces:
        raise UserError("The answer is a single token, which the prompt alone decides: nothing was read from the KV cache.")
    visual, words = words_of(vlm, prompt, answer)
    patch = np.full(len(visual), -1)
    patch[visual] = np.arange(len(image.features)) if keep is None else keep
    bits, kept = bits_of(answer.traces), answer.light()
    planed = planed_tokens(setting, answer.prompt_tokens, len(answer.timings.decode))[-len(bits) :]
    return Run(
        vlm.name, vlm.placement.reason, question, setting, kept, prompt, image.picture, image.grid, patch, words, bits, planed
    )
