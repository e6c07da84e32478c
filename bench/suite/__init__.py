"""The suite: nine held-out tasks after the kinds of the paper's benchmarks, and how answers to them are scored."""
