"""onnxruntime's GroupQueryAttention on an int8 cache, one decode step: the independent low-precision baseline.

One scale per KV head and channel, of absolute maxima over the cache; past and present share a buffer, so that nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# The step appends its own token; the buffer has room for it.
OPSET, CONTRIB = 18, 1


def available() -> tuple[bool, str]:
    """Whether onnxruntime and onnx are installed, and what to say."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        return False, f"no ort_int8: {error.name} is not installed"
    return True, f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"


def decoder(heads: int, k: torch.Tensor, v: torch.Tensor, threads: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """k, v: float32 [1, Hkv, L, D], of which the newest token is appended by every call, over and over.

    Returns a function q [1, Hq, D] float32 -> [1, Hq, D]: softmax(q.K / sqrt(D)) V of the L tokens.
    """
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    _, kv_heads, length, dim = k.shape
    scales = [(x.abs().amax(2, keepdim=True) / 127).clamp(min=1e-12) for x in (k, v)]
    past = [(x / s).round().clamp(-127, 127).to(torch.int8).numpy() for x, s in zip((k, v), scales, strict=True)]
    names = ["query", "key", "value", "past_key", "past_value", "seqlens", "total", "", "", "", "", "", "k_scale", "v_scale"]
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        k_quant_type="PER_CHANNEL",
        v_quant_type="PER_CHANNEL",
        kv_cache_bit_width=8,
    )
    shapes = {
        "query": (TensorProto.FLOAT, [1, 1, heads * dim]),
        "key": (TensorProto.FLOAT, [1, 1, kv_heads * dim]),
        "value": (TensorProto.FLOAT, [1, 1, kv_heads * dim]),
        "past_key": (TensorProto.INT8, [1, kv_heads, length, dim]),
        "past_value": (TensorProto.INT8, [1, kv_heads, length, dim]),
        "seqlens": (TensorProto.INT32, [1]),
        "total": (TensorProto.INT32, [1]),
        "k_scale": (TensorProto.FLOAT, [1, kv_heads, 1, dim]),
        "v_scale": (TensorProto.FLOAT, [1, kv_heads, 1, dim]),
    }
    outputs = {
        "output": shapes["query"],
        "present_key": shapes["past_key"],
        "present_value": shapes["past_value"],
    }
    graph = helper.make_graph(
        [node],
        "attention",
        *([helper.make_tensor_value_info(name, *what) for name, what in group.items()] for group in (shapes, outputs)),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", CONTRIB)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would go on spinning for a while after a call, and make whoever is measured next up to twice as slow.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    newest = [x[:, :, -1].reshape(1, 1, -1).numpy().copy() for x in (k, v)]
    fixed = {
        "key": newest[0],
        "value": newest[1],
        "seqlens": np.array([length - 1], np.int32),
        "total": np.array([length], np.int32),
        "k_scale": scales[0].numpy(),
        "v_scale": scales[1].numpy(),
    }
    binding = session.io_binding()
    for name, x in fixed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x))
    for name, x in zip(("key", "value"), past, strict=True):
        shared = ort.OrtValue.ortvalue_from_numpy(x)
        binding.bind_ortvalue_input(f"past_{name}", shared)
        binding.bind_ortvalue_output(f"present_{name}", shared)
    query = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, heads * dim), np.float32))
    answer = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, heads * dim), np.float32))
    binding.bind_ortvalue_input("query", query)
    binding.bind_ortvalue_output("output", answer)

    def attend(q: torch.Tensor) -> torch.Tensor:
        query.update_inplace(q.reshape(1, 1, -1).numpy())
        session.run_with_iobinding(binding)
        return torch.from_numpy(answer.numpy()).reshape(1, heads, dim)

    return attend
