"""Reads SmolLM2's GGUF file, and keeps what was read where it opens in a fraction of the time.

Parsing and dequantising the GGUF takes seven seconds on two cores; float16 safetensors and a tokenizer.json take one.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vlm import text_weights, tokenizer
from vlm.errors import UserError

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}


def prepare(progress: text_weights.Progress = text_weights.print_progress) -> Path:
    """The folder with the converted weights and the tokenizer, fetched and converted on the first call.

    Raises:
        UserError: they cannot be fetched or written.
    """
    folder = text_weights.cache_dir()
    if not text_weights.folder_is_ready():
        reader = gguf.GGUFReader(text_weights.fetch_gguf(progress))
        try:
            _write(folder, reader)
        except OSError as error:
            raise UserError(f"The text weights could not be written to {folder}: {error.strerror}.") from error
    return folder


def _write(folder: Path, reader: gguf.GGUFReader) -> None:
    # The weights last and by renaming: a cut run leaves nothing that looks finished.
    tokenizer.build(*vocabulary(reader)).save(str(folder / text_weights.TOKENIZER))
    weights = folder / text_weights.CONVERTED
    temporary = weights.with_suffix(".writing")
    save_file({name: tensor.half().contiguous() for name, tensor in state_dict(reader).items()}, temporary)
    temporary.replace(weights)


def load(progress: text_weights.Progress = text_weights.print_progress) -> tuple[dict[str, torch.Tensor], Tokenizer]:
    """(float32 state dict under the names of the Qwen2.5-VL text model, tokenizer)."""
    folder = prepare(progress)
    state = load_file(folder / text_weights.CONVERTED)
    return {name: tensor.float() for name, tensor in state.items()}, Tokenizer.from_file(str(folder / text_weights.TOKENIZER))


def vocabulary(reader: gguf.GGUFReader) -> tuple[list[str], list[tuple[str, str]]]:
    """The byte-level BPE of the model: (tokens by id, merges by rank)."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    return tokens, [tuple(merge.split(" ")) for merge in merges]


def state_dict(reader: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """Float32 weights under the names of transformers' Qwen2.5-VL text model.

    llama.cpp interleaves the two rotary halves of q and k rows; they are put back. SmolLM2 has no q/k/v biases, which
    this class has: they are zeros, and zero biases change nothing.
    """
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(np.require(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32, "CW"))
        if tensor.name in TOP_NAMES:
            state[TOP_NAMES[tensor.name]] = weight
            continue
        _, layer, part, _ = tensor.name.split(".")
        if part in heads:
            weight = _undo_rotary_permutation(weight, heads[part])
        name = f"layers.{layer}.{LAYER_NAMES[part]}"
        state[f"{name}.weight"] = weight
        if part in ("attn_q", "attn_k", "attn_v"):
            state[f"{name}.bias"] = torch.zeros(len(weight))
    return state


def _undo_rotary_permutation(weight: torch.Tensor, heads: int) -> torch.Tensor:
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


if __name__ == "__main__":
    try:
        print(f"  text weights: {prepare()}")
    except UserError as problem:
        sys.exit(f"error: {problem}")
