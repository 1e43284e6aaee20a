"""The programs in docs/, for tests."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"


def load(name: str) -> Any:
    """Import docs/NAME.py and the programs that it imports."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(DOCS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module
