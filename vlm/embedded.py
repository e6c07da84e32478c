"""TrimLens-150M: SmolLM2-135M-Instruct and a vision tower made by ``training/``, in transformers' Qwen2.5-VL class.

The class is unmodified; its tower's merger has one more module behind it, and a hook adds places (:mod:`vlm.words`).
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vlm import gguf_text, text_weights
from vlm.errors import UserError
from vlm.tokenizer import END_OF_TEXT, IM_END, IMAGE_PAD, VISION_END, VISION_START, Prompter
from vlm.words import NearWords, place_tokens

MODEL_DIR = Path(__file__).resolve().parent.parent / "assets" / "model"
NAME = "TrimLens-150M"

# transformers assigns rotary frequency chunk i to axis i % 3 (time, height, width). Chunks of [0, 1, 1] alternate height and
# width over the 24 highest frequencies; with the usual three blocks, width would get only the 12 lowest ones, which turn by
# 0.012 rad over a whole image: the language model could not see columns. Text has three equal coordinates and is unaffected.
MROPE_SECTION = [0, 1, 1] * 12 + [8, 0, 0]


def config() -> Qwen2_5_VLConfig:
    """The architecture: 8 vision layers of 192 (full attention in layers 2, 5 and 7), 30 language layers of 576."""
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0, "mrope_section": MROPE_SECTION},
            "bos_token_id": 1,
            "eos_token_id": IM_END,
            "pad_token_id": END_OF_TEXT,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 8,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 3,
            "out_hidden_size": 576,
            "window_size": 112,
            "fullatt_block_indexes": [2, 5, 7],
        },
        image_token_id=IMAGE_PAD,
        video_token_id=6,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )


def open_text_model(
    progress: text_weights.Progress = text_weights.print_progress,
) -> tuple[Qwen2_5_VLForConditionalGeneration, Prompter]:
    """The class with SmolLM2's weights and an untrained vision tower, float32, in eval mode, and the prompter."""
    state, tokenizer = gguf_text.load(progress)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config())
    language = model.model.language_model
    language.load_state_dict(state, strict=True, assign=True)
    _materialise(model)
    model.lm_head.weight = language.embed_tokens.weight
    model.generation_config.eos_token_id = [IM_END, END_OF_TEXT]
    model.generation_config.pad_token_id = END_OF_TEXT
    return model.eval(), Prompter(tokenizer)


def _materialise(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Gives what is still on the meta device (the tower, rotary buffers) storage and transformers' own initial values."""
    tower = type(model.model.visual)(model.config.vision_config)
    model.model.visual = tower
    language = model.model.language_model
    language.rotary_emb = type(language.rotary_emb)(config=model.config.text_config)


def open_model(
    progress: text_weights.Progress = text_weights.print_progress, folder: Path = MODEL_DIR
) -> tuple[Qwen2_5_VLForConditionalGeneration, Prompter]:
    """The trained model: SmolLM2 with the adapters of ``folder`` merged in, and the tower of ``folder``.

    Raises:
        UserError: the folder holds no trained weights, or the text weights cannot be fetched.
    """
    state = shipped_state(folder)
    model, prompter = open_text_model(progress)
    tower = model.model.visual
    tower.load_state_dict(part(state, "visual"), strict=True)
    if "places" not in (words := part(state, "words")):
        raise UserError(f"The weights in {folder} hold no words for the visual tokens. Run `python -m training.export`.")
    tower.merger = nn.Sequential(tower.merger, NearWords(**words))
    tower.register_forward_hook(place_tokens, with_kwargs=True)
    merge_adapters(model, state)
    return model, prompter


def shipped_state(folder: Path = MODEL_DIR) -> dict[str, torch.Tensor]:
    """All tensors of ``folder``'s shards in float32.

    Raises:
        UserError: the folder holds no trained weights.
    """
    state, _ = read_shards(folder, "trimlens")
    if not state:
        raise UserError(f"No trained weights in {folder}. Run `make train`, or check out the repository with its assets.")
    return state


def read_shards(folder: Path, stem: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Float32 tensors of ``<stem>-<n>.safetensors`` by name, and what the files say about them; empty where there is nothing."""
    state, about = {}, {}
    for path in sorted(folder.glob(f"{stem}-*.safetensors")):
        with safe_open(path, "pt") as file:
            state |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  (it is no dict)
            about = file.metadata() or {}
    return state, about


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below ``prefix`` under the names that they have there: "visual" is the vision tower."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}


@torch.no_grad()
def merge_adapters(model: Qwen2_5_VLForConditionalGeneration, state: dict[str, torch.Tensor]) -> None:
    """Adds B @ A of every ``<module>.lora_a`` [r, in] and ``<module>.lora_b`` [out, r] to its module's weight."""
    language = model.model.language_model
    for name in (name for name in state if name.endswith(".lora_a")):
        module = name.removesuffix(".lora_a")
        language.get_submodule(module).weight += state[f"{module}.lora_b"] @ state[name]


def card() -> dict:
    """What ``training/`` wrote about the weights: steps, seed, measured accuracy."""
    path = MODEL_DIR / "card.json"
    return json.loads(path.read_text()) if path.exists() else {}
