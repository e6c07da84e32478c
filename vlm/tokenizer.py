"""SmolLM2's byte-level BPE, and prompts in which a user's text can never become a control token."""

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

IM_START, IM_END, END_OF_TEXT = 1, 2, 0
# Tokens 3 to 16 of SmolLM2's vocabulary are reserved and were never trained on; three of them mark the image.
VISION_START, VISION_END, IMAGE_PAD = 3, 4, 5


def build(tokens: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    """The tokenizer without any added token, so that ``<|im_end|>`` typed by a user is plain text.

    Digits are split one by one first, then GPT-2's pattern applies (SmolLM2's ``tokenizer.json``).
    """
    # The 17 reserved names are in the vocabulary, but no merge leads to them, and they are not added tokens.
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@dataclass
class Prompter:
    """Turns questions into token ids and back; control tokens are written as ids here and nowhere else."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self.newline = self.encode("\n")
        self.user, self.assistant = self.encode("user\n"), self.encode("assistant\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Plain text of token ids; reserved ids (below 17) print nothing."""
        return self.tokenizer.decode([index for index in ids if index > 16], skip_special_tokens=False)

    def prefix(self, visual_counts: list[int]) -> list[int]:
        """``user`` turn up to the end of its images, one span of IMAGE_PAD per image."""
        images = [index for n in visual_counts for index in (VISION_START, *[IMAGE_PAD] * n, VISION_END)]
        return [IM_START, *self.user, *images]

    def suffix(self, question: str, history: tuple[tuple[str, str], ...] = ()) -> list[int]:
        """The earlier turns (question, answer), the question and the head of its answer."""
        ids = []
        for asked, answered in history:
            ids += [*self.suffix(asked), *self.encode(answered), IM_END, *self.newline, IM_START, *self.user]
        return [*ids, *self.encode(question), IM_END, *self.newline, IM_START, *self.assistant]

    def prompt(self, question: str, visual_counts: list[int], history: tuple[tuple[str, str], ...] = ()) -> list[int]:
        """A whole prompt, after the earlier turns (question, answer) about the same images."""
        return self.prefix(visual_counts) + self.suffix(question, history)
