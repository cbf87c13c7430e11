"""Floor 0 is light: it imports neither torch nor any search or config library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import circuitsearch.core

FOLDER = Path(circuitsearch.core.__file__).parent
MODULES = sorted(f"circuitsearch.core.{path.stem}" for path in FOLDER.glob("[a-z]*.py"))
CODE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def test_modules_import_no_heavy_libraries() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE, *MODULES],
        capture_output=True,
        text=True,
        check=True,
        cwd=FOLDER.parents[1],
    )
    loaded = set(json.loads(run.stdout))
    assert set(MODULES) <= loaded
    assert len(MODULES) >= 9
    assert not loaded & {"torch", "transformers", "optuna", "networkx", "scipy", "pydantic"}


def test_modules_say_what_is_public() -> None:
    for name in MODULES:
        module = __import__(name, fromlist=["__all__"])
        missing = [public for public in module.__all__ if not hasattr(module, public)]
        assert missing == []
        assert module.__doc__
