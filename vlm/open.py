"""Opens a model by name, once."""

import gc
import threading
import time
import weakref
from pathlib import Path

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pruning.kernels import warm_up
from pruning.scorers.trained import FILE
from vlm import device, embedded, hub
from vlm.errors import UserError
from vlm.model import Vlm, last

MODELS = (embedded.NAME, *hub.HUB_MODELS)
MIN_SIDE, MAX_SIDE = 224, 448


def embedded_processor() -> Qwen2VLImageProcessorPil:
    """Images of the embedded model: between 224 x 224 and 448 x 448 pixels in area, 64 to 256 visual tokens."""
    return Qwen2VLImageProcessorPil(min_pixels=MIN_SIDE**2, max_pixels=MAX_SIDE**2)


_LOCKS = {"embedded": threading.Lock(), "hub": threading.Lock()}
_OPENED: dict[str, Vlm] = {}
# Those too that had to make room, as long as somebody still answers with them.
_ALIVE: weakref.WeakValueDictionary[str, Vlm] = weakref.WeakValueDictionary()
# Seconds that the next model waits for the last answer of the one before.
PATIENCE = 15.0


def is_open(name: str) -> bool:
    """Whether :func:`open_vlm` would answer at once."""
    return name in _ALIVE


def open_vlm(name: str = embedded.NAME) -> Vlm:
    """The model called ``name``, opened and warmed up once: the embedded one, an allowed hub name, or a local folder.

    Only one other model than the embedded one is kept in memory; it makes room for the next unless somebody still holds it.

    Raises:
        UserError: the name is unknown, the weights cannot be had, or another model is still answering.
    """
    # Without a lock: what is open must not wait for what is being opened.
    if (vlm := _ALIVE.get(name)) is not None:
        return vlm
    with _LOCKS["embedded" if name == embedded.NAME else "hub"]:
        if name not in _OPENED:
            if name != embedded.NAME:
                _make_room(name)
            vlm = _open(name)
            _find_scorer(vlm)
            warm_up()
            _warm(vlm)
            _OPENED[name] = _ALIVE[name] = vlm
        return _OPENED[name]


def _make_room(name: str) -> None:
    """Closes other models than the embedded one, once it is likely that ``name`` can be opened in their place."""
    if name not in hub.HUB_MODELS and not Path(name).is_dir():
        raise UserError(f"Unknown model {name!r}. Choose one of: {', '.join(MODELS)}, or a local folder.")
    others = [key for key in _OPENED if key != embedded.NAME]
    hub.check(name, sum(p.nbytes for key in others for p in _OPENED[key].model.parameters()))
    for other in others:
        del _OPENED[other]
    until = time.monotonic() + PATIENCE
    while held := {other: vlm for other in others if (vlm := _ALIVE.get(other)) is not None}:
        if time.monotonic() > until:
            _OPENED.update(held)
            raise UserError(
                f"{' and '.join(held)} is still answering, and one model of its size fits at a time. Please try again in a moment."
            )
        vlm = held = None
        gc.collect()
        time.sleep(0.2)


def _open(name: str) -> Vlm:
    if name == embedded.NAME:
        model, prompter = embedded.open_model()
        placement = device.choose(big=False)
        model = model.to(placement.device, placement.dtype)
        return Vlm(name, model, prompter, embedded_processor(), placement)
    return hub.open_hub(name)


def scorer_file(name: str) -> Path:
    """Where a model's trained scorer lies, if it has one: beside the weights."""
    return (embedded.MODEL_DIR if name == embedded.NAME else Path(name)) / FILE


def _find_scorer(vlm: Vlm) -> None:
    """Takes the trained scorer beside the weights; a missing or broken one stops nobody who does not ask for it."""
    try:
        vlm.use_scorer(scorer_file(vlm.name))
    except UserError as error:
        vlm.no_scorer = str(error)


def _warm(vlm: Vlm) -> None:
    """One small question, so that the first measured one does not pay for allocations and compilation."""
    image = vlm.encode(Image.new("RGB", (MIN_SIDE, MIN_SIDE), "white"))
    last(vlm.answer([image], "Hello", max_new_tokens=3))
    vlm.forget()
