"""Kernels of decode attention over a store. ``reference`` defines what every other must return."""
