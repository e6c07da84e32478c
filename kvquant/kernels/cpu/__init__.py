"""The CPU kernels behind kvquant.kernels.fast, compiled by numba on the user's machine; nothing here imports without it."""
