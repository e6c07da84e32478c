"""English text that ships with every machine this runs on, named, and cut into windows of tokens. Nothing is downloaded.

licences: /usr/share/common-licenses (Debian); reference: the language reference inside Python (pydoc_data.topics);
docstrings: of well documented files of Python's standard library, read without importing them; readmes: the long descriptions
of the installed packages (METADATA).
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distributions
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics

LICENCES = Path("/usr/share/common-licenses")
# Files with much to read, without ".py".
LIBRARY = (
    "_pydecimal argparse calendar cmd codecs configparser contextlib csv dataclasses datetime difflib doctest enum fractions "
    "functools gettext heapq inspect ipaddress locale logging/__init__ mailbox optparse os pathlib pdb pickle pickletools pydoc "
    "random sched shelve shlex shutil smtplib socket ssl statistics string subprocess tarfile tempfile textwrap threading "
    "tkinter/__init__ trace turtle typing unittest/case unittest/mock urllib/request uuid weakref zipfile"
)
# The reference's topics and most docstrings are shorter than a window: they are joined up to this many characters.
LEAST = 12_000


@cache
def documents() -> dict[str, list[tuple[str, str]]]:
    """Kind -> (name, text), in an order that does not depend on the machine."""
    licences = [(p.name, p.read_text(errors="replace")) for p in sorted(LICENCES.glob("*")) if p.is_file() and not p.is_symlink()]
    return {
        "licences": licences,
        "reference": list(_joined(sorted(topics.items()))),
        "docstrings": list(_joined(_docstrings(Path(sysconfig.get_paths()["stdlib"])))),
        "readmes": sorted({d.name: d.metadata.get_payload() or "" for d in distributions()}.items()),
    }


def windows(encode: Callable[[str], list[int]], length: int, count: int, seed: int = 0) -> list[tuple[str, list[int]]]:
    """``count`` windows of ``length`` tokens, (name, ids), no two overlapping; kinds take turns, each in a seeded order.

    Raises ValueError when this machine has less text.
    """
    kinds = []
    for kind, texts in documents().items():
        texts = random.Random(seed).sample(texts, len(texts))
        kinds.append(_cut(kind, texts, encode, length))
    # Lazily: only what is needed is tokenised.
    every = (window for turn in zip_longest(*kinds) for window in turn if window)
    found = [window for window, _ in zip(every, range(count), strict=False)]
    if len(found) < count:
        raise ValueError(f"This machine has only {len(found)} windows of {length} tokens of text, not {count}.")
    return found


def _cut(kind: str, texts: list[tuple[str, str]], encode: Callable, length: int) -> Iterator[tuple[str, list[int]]]:
    for name, text in texts:
        ids = encode(text) if len(text) > 2 * length else []  # a token is more than two characters
        for start in range(0, len(ids) - length + 1, length):
            yield f"{kind}/{name}@{start}", ids[start : start + length]


def _joined(parts: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    first, text = "", ""
    for name, part in parts:
        first, text = first or name, text + part + "\n\n"
        if len(text) >= LEAST:
            yield first, text
            first, text = "", ""


def _docstrings(library: Path) -> Iterator[tuple[str, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for name in LIBRARY.split():
        path = library / f"{name}.py"
        # Debian's own Python comes without some of them.
        tree = ast.parse(path.read_bytes()) if path.exists() else ast.parse("")
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        yield name, "\n\n".join(filter(None, found))
