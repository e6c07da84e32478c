"""Session fixtures: the tiny random models, the real text weights, and a header that says what ran."""

import os
from importlib.metadata import PackageNotFoundError, version

os.environ["HF_HUB_OFFLINE"] = "1"
# Exactness is tested in float32, whatever is faster here.
os.environ["TRIMLENS_DTYPE"] = "float32"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from tests.unit.tiny import tiny_model, tiny_vlm
from vlm import embedded
from vlm.model import Vlm
from vlm.tokenizer import Prompter


def pytest_report_header() -> str:
    """Versions of what the results depend on."""
    packages = ", ".join(_named(package) for package in ("torch", "transformers", "gradio", "numba"))
    return f"{packages}; {torch.get_num_threads()} torch threads"


def _named(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker of the tests that load the 135M text weights."""
    config.addinivalue_line("markers", "slower: loads the real text weights (a few seconds each)")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def model() -> Qwen2_5_VLForConditionalGeneration:
    """The tiny Qwen2.5-VL; never changed by a test."""
    return tiny_model(0)


@pytest.fixture
def vlm(model: Qwen2_5_VLForConditionalGeneration) -> Vlm:
    """A fresh :class:`Vlm` (empty cache) around the tiny model."""
    return tiny_vlm(model)


@pytest.fixture(scope="session")
def text_model() -> tuple[Qwen2_5_VLForConditionalGeneration, Prompter]:
    """The real embedded architecture with SmolLM2's weights and a random vision tower."""
    return embedded.open_text_model()
