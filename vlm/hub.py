"""Qwen2.5-VL from the hub (or a folder), through the same code as the embedded model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlm import device
from vlm.errors import UserError
from vlm.model import Vlm

# An allow-list: a free-text repository name on a public page would be a way to make the server fetch anything.
# The bytes are what the 16-bit weights need, with some room for the activations.
HUB_MODELS = {"Qwen/Qwen2.5-VL-3B-Instruct": 9_000_000_000, "Qwen/Qwen2.5-VL-7B-Instruct": 18_000_000_000}
MIN_TOKENS, MAX_TOKENS = 64, 1024
FAMILY = "qwen2_5_vl"
SYSTEM = "You are a helpful assistant."


@dataclass
class HubPrompter:
    """Qwen's chat format written as ids; the user's text is split even where it spells a control token."""

    tokenizer: PreTrainedTokenizerBase
    image_token: int
    vision_start: int
    vision_end: int

    def __post_init__(self) -> None:
        self.start, self.end = self.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, in which no control token can appear."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """Text of ids without control tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def prompt(self, question: str, visual_counts: list[int], history: tuple[tuple[str, str], ...] = ()) -> list[int]:
        """System turn, the turns so far (question, answer) and the question, images before the first, head of the answer."""
        ids = [*self._turn("system", self.encode(SYSTEM))]
        images = [t for n in visual_counts for t in (self.vision_start, *[self.image_token] * n, self.vision_end)]
        for asked, answered in history:
            ids += [*self._turn("user", images + self.encode(asked)), *self._turn("assistant", self.encode(answered))]
            images = []
        return [*ids, *self._turn("user", images + self.encode(question)), self.start, *self.encode("assistant\n")]

    def _turn(self, role: str, content: list[int]) -> list[int]:
        return [self.start, *self.encode(f"{role}\n"), *content, self.end, *self.encode("\n")]


def _reason(error: Exception) -> str:
    """Our own sentence as it is; of a library's message, which may hold paths of the server, only its kind."""
    return str(error) if str(error).startswith("it is of the family") else f"{type(error).__name__} while loading."


def check(name: str, freed: int = 0) -> None:
    """Whether a checkpoint can be opened, as far as that can be told without loading it; ``freed``: bytes to be had first.

    Raises:
        UserError: it cannot be reached, is of another family, or needs more memory than there is.
    """
    where = device.choose(big=True).device
    needed, there = HUB_MODELS.get(name, 0), device.memory(where) + (freed if where == "cuda" else 0)
    if needed > there:
        raise UserError(
            f"{Path(name).name} needs about {needed / 1e9:.0f} GB of memory; this machine has {there / 1e9:.0f} GB. "
            "The embedded model goes on working."
        )
    with _told(name):
        # Another family's config would be filled up with the defaults of the 72B model, and fill the memory.
        if (family := AutoConfig.from_pretrained(name).model_type) != FAMILY:
            raise ValueError(f"it is of the family {family!r}, not {FAMILY!r}.")


def open_hub(name: str) -> Vlm:
    """Loads a checkpoint of the class ``Qwen2_5_VLForConditionalGeneration`` by hub name or folder, after :func:`check`.

    Raises:
        UserError: it cannot be fetched.
    """
    placement = device.choose(big=True)
    with _told(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
        processor = Qwen2VLImageProcessorPil.from_pretrained(name, min_pixels=MIN_TOKENS * 28 * 28, max_pixels=MAX_TOKENS * 28 * 28)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            name, dtype=placement.dtype, attn_implementation=placement.attention
        )
        model = model.to(placement.device).eval()
    config = model.config
    prompter = HubPrompter(tokenizer, config.image_token_id, config.vision_start_token_id, config.vision_end_token_id)
    return Vlm(name, model, prompter, processor, placement)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What goes wrong while a checkpoint is fetched, as a sentence."""
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{Path(name).name} could not be opened: {_reason(error)} The hub must be reachable (or the model in the local "
            "cache), and a 3B model needs about 9 GB of memory. The embedded model goes on working."
        ) from error
