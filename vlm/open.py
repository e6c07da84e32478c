"""Opens a model by name, once."""

import threading
from functools import lru_cache
from pathlib import Path

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vlm import device, embedded, hub
from vlm.errors import UserError
from vlm.model import Vlm

MODELS = (embedded.NAME, *hub.HUB_MODELS)
MIN_SIDE, MAX_SIDE = 224, 448


def embedded_processor() -> Qwen2VLImageProcessorPil:
    """Images of the embedded model: between 224 x 224 and 448 x 448 pixels in area, 64 to 256 visual tokens."""
    return Qwen2VLImageProcessorPil(min_pixels=MIN_SIDE**2, max_pixels=MAX_SIDE**2)


_OPENING = threading.Lock()


def open_vlm(name: str = embedded.NAME) -> Vlm:
    """The model called ``name``: the embedded one, an allowed hub name, or a local folder; opened once.

    Raises:
        UserError: the name is unknown or the weights cannot be had.
    """
    with _OPENING:
        return _open(name)


@lru_cache(maxsize=2)
def _open(name: str) -> Vlm:
    if name == embedded.NAME:
        model, prompter = embedded.open_model()
        placement = device.choose(big=False)
        model = model.to(placement.device, placement.dtype)
        note = "made by this project; knows pictograms, coloured shapes and where they are, and little else"
        return Vlm(name, model, prompter, embedded_processor(), placement, note)
    if name not in hub.HUB_MODELS and not Path(name).is_dir():
        raise UserError(f"Unknown model {name!r}. Choose one of: {', '.join(MODELS)}, or a local folder.")
    return hub.open_hub(name)
