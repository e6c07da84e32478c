"""A transformers cache that stores K and V as TrimLens reads them.

    cache = KVCache(model.config, Setting(Certified(0.02)))
    with reading(model):                                       # kvquant.attention
        model.generate(**inputs, past_key_values=cache)
    cache.traces[-1][layer]                                    # what the newest decode step has read

``update`` returns tensors that only say what is stored. The attention function of ``reading`` reads from the planes; any
other code gets all bits, so that plain sdpa or eager attention work, too, and save nothing. A prompt is attended to as it is:
it saves no reading. Planes save reading, not memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps

import torch
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, get_layer_types_and_kwargs

from kvquant.kernels import reason
from kvquant.modes import Exact, Mode, Paper, Trace
from kvquant.planes import to_half
from kvquant.store import Store
from kvquant.stored import Contents, StoredTensor

ALL_BITS = "scaled dot product attention of PyTorch: every bit is read."


@dataclass(frozen=True)
class Setting:
    """How a cache stores and reads.

    mode: Exact() (numbers as they come: the same bits as the default cache under sdpa), Paper() (half planes) or Certified()
    (fixed-point planes). halves: Exact only, all 16 bits of half planes: the same again for float16 models. window: the newest
    tokens, kept whole. traced: of how many decode steps the traces are kept, 0 for none; one takes 8 bytes per token, layer
    and KV head. start: up to so many tokens the cache is the exact one, because choosing bits costs more than a short context's
    reading (bench.kv_generate); the update that goes beyond moves all to planes, where a crop leaves them.

    In planes, the numbers of a float32 model are float16 from the start, as if its cache were: whole tokens of 32 bits would
    cost more reading than planes save. A certified error then refers to attention of those halves.
    """

    mode: Mode = field(default_factory=Exact)
    halves: bool = False
    window: int = 64
    traced: int = 64
    start: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.mode, Mode):
            raise ValueError(f"The mode must be Exact(), Paper() or Certified(), got {self.mode!r}.")
        if self.halves and not isinstance(self.mode, Exact):
            raise ValueError("Only the exact mode can choose its storage; the other modes have their own planes.")
        if self.traced < 0:
            raise ValueError(f"The number of traced steps cannot be negative, got {self.traced}.")
        if self.start < 0:
            raise ValueError(f"The number of tokens to start at cannot be negative, got {self.start}.")
        Store(self.format, self.window)  # refuses a negative window

    @property
    def format(self) -> str:
        """The storage, a name of ``kvquant.store.FORMATS``."""
        if isinstance(self.mode, Exact):
            return "half" if self.halves else "whole"
        return "half" if isinstance(self.mode, Paper) else "fixed"


class KVCache(Cache):
    """Keys and values of every layer of a model, for ``generate(past_key_values=...)`` or a model's forward.

    config: the model's. Raises ValueError for a model with other layers than full attention, or with an encoder.
    """

    def __init__(self, config: PreTrainedConfig, setting: Setting | None = None, offloading: bool = False) -> None:
        self.setting = setting or Setting()
        decoder = config.get_text_config(decoder=True)
        others = sorted(set(get_layer_types_and_kwargs(decoder)[0]) - {"full_attention"})
        if config.is_encoder_decoder or decoder.is_encoder_decoder:
            raise ValueError("This cache serves decoder-only models; an encoder-decoder model needs transformers' own cache.")
        if others:
            raise ValueError(f"This cache serves models with full attention in every layer; this one also has {', '.join(others)}.")
        if offloading:
            raise ValueError("This cache stays where the model is; it cannot be offloaded.")
        super().__init__(layers=[StoreLayer(self.setting) for _ in range(decoder.num_hidden_layers)])

    @property
    def traces(self) -> list[tuple[Trace, ...]]:
        """``traces[step][layer]`` of the newest decode steps, the newest last. Only attention under ``reading`` leaves any."""
        return list(zip(*(layer.traces for layer in self.layers), strict=False))

    @property
    def reader(self) -> str:
        """The kernel that reads the cache now, and why, in one sentence."""
        store = self.layers[-1].store
        if not store.length:
            return ""
        return ALL_BITS if self.layers[-1].exact else reason(store.tail["k"], store)


def _storing(method: Callable) -> Callable:
    """A method that changes a layer, outside inference mode, whose tensors a later call outside of it could not change."""

    @wraps(method)
    def run(layer: StoreLayer, *args, **kwargs):
        layer.version += 1
        if not (torch.is_inference_mode_enabled() or torch.is_grad_enabled()):
            return method(layer, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return method(layer, *args, **kwargs)

    return run


def _first_store(setting: Setting) -> Store:
    return Store("whole" if setting.start else setting.format, setting.window)


class StoreLayer(CacheLayerMixin):
    """One layer: a :class:`Store` and the traces of its newest decode steps; ``version`` counts its changes."""

    is_sliding = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, self.store, self.version = setting, _first_store(setting), 0
        self.traces: deque[Trace] = deque(maxlen=setting.traced)

    @property
    def exact(self) -> bool:
        """Whether a decode step reads all bits."""
        return self.store.format == "whole" or isinstance(self.setting.mode, Exact)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to prepare: the store takes its shape from the first tokens."""
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores [B, Hkv, T, D] and returns all of K and V: as they came if the cache was empty, else as stored tensors.

        Tokens that are all whole, in steps that nobody traces, are plain views of the store, valid until a crop: tensors that
        only say what is stored cost time, and there is nothing to choose. Raises ValueError or RuntimeError where that cannot be
        done; see :class:`Store`.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError("This cache cannot be compiled; run the model without torch.compile.")
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise RuntimeError("This cache passes no gradients on; run the model under torch.no_grad().")
        was_empty, dtype = self.get_seq_length() == 0, key_states.dtype
        self._append(key_states, value_states)
        if was_empty:
            return key_states, value_states
        if self.store.format == "whole" and not self.setting.traced:
            return self.store.dense()
        contents = Contents(self, self.version, dtype)
        return StoredTensor(contents, 0), StoredTensor(contents, 1)

    @_storing
    def _append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        store, length = self.store, self.store.length
        if store.format != self.setting.format and length + k.shape[2] > self.setting.start:
            store = Store(self.setting.format, self.setting.window)
            if length:
                k, v = (torch.cat(pair, dim=2) for pair in zip(self.store.dense(), (k, v), strict=True))
        if store.format != "whole" and k.dtype not in (torch.float16, torch.bfloat16):
            k, v = to_half(k), to_half(v)
        store.append(k, v)
        self.store, self.is_initialized = store, True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(tokens after the next update, offset)."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens stored."""
        return self.store.length

    def get_max_length(self) -> int:
        """-1: it grows."""
        return -1

    @_storing
    def reset(self) -> None:
        """Forgets tokens and traces."""
        self.store = _first_store(self.setting)
        self.traces.clear()
        self.is_initialized = False

    @_storing
    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest ``-tokens_to_remove`` tokens, all if there are fewer; as in transformers, never a positive number."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove, got {tokens_to_remove}.")
        self.store.crop(max(0, self.store.length + tokens_to_remove))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row b of the batch becomes what row beam_idx[b] was, int64 [B]."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row of the batch ``repeats`` times, copies side by side."""
        if self.get_seq_length():
            self.batch_select_indices(torch.arange(self.store.shape[0]).repeat_interleave(repeats))

    @_storing
    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows ``indices`` of the batch: int64 [new B], or bool [B]."""
        if self.get_seq_length():
            rows = torch.arange(self.store.shape[0], device=self.store.tail["k"].device)
            self.store.select(rows[indices.to(rows.device)])

    def offload(self) -> None:
        raise NotImplementedError("This cache stays where the model is; it cannot be offloaded.")

    def prefetch(self) -> None:
        raise NotImplementedError("This cache stays where the model is; it cannot be offloaded.")
