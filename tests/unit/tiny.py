"""Tiny models with random weights, built from a config: nothing is downloaded."""

import numpy as np
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from pruning.scorers import ScorerWeights
from pruning.tokens import LayerView, VisualTokens
from vlm.device import Placement
from vlm.model import Encoded, Vlm
from vlm.open import embedded_processor
from vlm.tokenizer import END_OF_TEXT, IM_END, IMAGE_PAD, VISION_END, VISION_START, Prompter, build

RESERVED = 17
VOCABULARY = RESERVED + 256
QUESTION = "What is this?"


def tiny_config(**changes) -> Qwen2_5_VLConfig:
    """Three language layers of 64, three vision layers of 32 with full attention in layers 1 and 2."""
    settings = {
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": 1,
            "eos_token_id": IM_END,
            "pad_token_id": END_OF_TEXT,
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 112,
            "fullatt_block_indexes": [1, 2],
        },
        "image_token_id": IMAGE_PAD,
        "video_token_id": 6,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "tie_word_embeddings": False,
    }
    return Qwen2_5_VLConfig(**settings | changes)


@torch.no_grad()
def randomise(model: PreTrainedModel, gain: float = 1.5) -> PreTrainedModel:
    """Float32, in eval mode; weights of ``gain`` / sqrt of the fan-in, enough for logits that differ by units."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = 1 if "embed_tokens" in name else parameter[0].numel()
            parameter.normal_(0, gain * fan_in**-0.5)
        elif name.endswith("bias"):
            parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id = [IM_END, END_OF_TEXT]
    model.generation_config.pad_token_id = END_OF_TEXT
    return model.eval()


def tiny_model(seed: int, config: Qwen2_5_VLConfig | None = None, gain: float = 1.5) -> Qwen2_5_VLForConditionalGeneration:
    """A randomised Qwen2.5-VL."""
    torch.manual_seed(seed)
    return randomise(Qwen2_5_VLForConditionalGeneration(config or tiny_config()), gain)


def tiny_qwen3_vl(seed: int) -> Qwen3VLForConditionalGeneration:
    """A randomised Qwen3-VL with the sizes of the tiny Qwen2.5-VL; its patches are 16 pixels wide."""
    config = tiny_config().to_dict()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    keep = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    text = {name: config["text_config"][name] for name in keep} | {"head_dim": 16, "rope_parameters": rope}
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    vision = sizes | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    tokens = {name: config[name] for name in config if name.endswith("_token_id")}
    torch.manual_seed(seed)
    return randomise(Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)))


def tiny_llama(seed: int) -> LlamaForCausalLM:
    """A randomised Llama with as many KV heads as query heads."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(seed)
    return randomise(LlamaForCausalLM(config))


def byte_prompter() -> Prompter:
    """One token per byte after 17 reserved ids."""
    return Prompter(build([*(f"<|reserved_{i}|>" for i in range(RESERVED)), *sorted(ByteLevel.alphabet())], []))


def tiny_vlm(model: Qwen2_5_VLForConditionalGeneration) -> Vlm:
    """A :class:`Vlm` around a tiny model, with the embedded model's processor."""
    placement = Placement("cpu", torch.float32, "sdpa", "a test")
    return Vlm("tiny", model, byte_prompter(), embedded_processor(), placement)


def random_scorer(width: int = 64, hidden: int = 6) -> ScorerWeights:
    """A trained scorer that nobody trained."""
    g = torch.Generator().manual_seed(0)
    return ScorerWeights(*(torch.randn(shape, generator=g) for shape in ((hidden, width), (hidden,)) * 2))


def random_tokens(seed: int, rows: int, cols: int, width: int = 16) -> VisualTokens:
    """Visual tokens with every optional part, all random."""
    g, n = torch.Generator().manual_seed(seed), rows * cols

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    attention, received, middle, paid = (normal(n).mul(2).softmax(0) for _ in range(4))
    return VisualTokens(
        features=normal(n, width) + 0.5,
        grid=(rows, cols),
        question=normal(5, width),
        attention=attention,
        weights=random_scorer(width),
        received=received,
        middle=middle,
        keys=normal(n, 8),
        layer=LayerView(normal(n, width), normal(7, width), normal(n, 6), normal(7, 6), paid),
    )


def noise(seed: int, width: int = 224, height: int = 224) -> Image.Image:
    """A picture of coarse coloured noise, so that its patches differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 28 or 1, width // 28 or 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def random_keep(seed: int, image: Encoded, count: int) -> np.ndarray:
    """``count`` arbitrary tokens of an image in raster order."""
    n = len(image.features)
    return np.sort(np.random.default_rng(seed).permutation(n)[:count])


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference; shapes must agree."""
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    return float((a.detach().double() - b.detach().double()).abs().max())


def assert_close(a: torch.Tensor, b: torch.Tensor, limit: float, what: str = "values") -> None:
    """Fails with the largest difference, and prints it where it passes."""
    difference = largest(a, b)
    print(f"{what}: largest difference {difference:.3g} (limit {limit:g})")
    assert difference < limit, f"{what}: largest difference {difference:.3g}, limit {limit:g}"
