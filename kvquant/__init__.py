"""How precisely to read the KV cache: the criterion, its bounds, storage in planes, and attention that reads only what it needs."""
