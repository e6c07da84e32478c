"""dev"""
from __future__ import annotations
import threading, numpy as np, torch
from kvquant.kernels.cpu.certified import certified
from kvquant.kernels.cpu.state import *
from kvquant.modes import *
from kvquant.kernels.reference import decode_attention as reference
_room = threading.local()
def decode_attention(q, store, mode, mask=None, scale=None):
    planes, n = store.planes, store.planed
    batch, heads, length, dim = store.shape
    rows = batch * heads
    p, norms = planes_of(store), norms_of(store)
    ask = request_of(q, store, mask, dim**-.5 if scale is None else scale)
    group = ask.query.shape[1]
    key = (rows, group, n, length - n, dim)
    kept = getattr(_room, "kept", None)
    if not kept or kept[0] != key: _room.kept = kept = (key, wave_of(*key))
    result = result_of(store, group)
    target = mode.error / (1 + mode.error)
    r = certified(p, norms, ask, kept[1], result, unit_of(n), target, mode.key_share, torch.get_num_threads())
    decode_attention.touched = result.counts
    f = torch.from_numpy
    o = f(result.out).reshape(batch, -1, dim)
    return o, Trace(f(result.key_bits).reshape(batch, heads, -1), f(result.value_bits).reshape(batch, heads, -1), torch.zeros(batch, heads, dim), 0, store.bytes_whole, o.norm(dim=-1), f(result.bound).reshape(batch, -1), f(result.bound_max).reshape(batch,-1), r)
