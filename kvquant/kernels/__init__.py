"""Kernels of decode attention over a store. ``reference`` defines what every other must return.

``decode_attention`` is the one door: the fastest kernel that serves a store and a mode will stand behind it.
"""

from kvquant.kernels.reference import decode_attention

__all__ = ["decode_attention"]
