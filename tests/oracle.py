"""Reads the reference numbers (shared/oracles: published PyTorch implementations on tiny models).

The folder is DDM_ORACLES, or ../shared/oracles beside the repository. It is no part of the project:
where it is absent the tests that ask for it are skipped.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "oracles"


def load(ref: str, case: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of <ref>/<case>.npz by name, and <ref>/<case>.json (config, notes, arrays)."""
    folder = Path(os.environ.get("DDM_ORACLES", _BESIDE))
    arrays, record = folder / ref / f"{case}.npz", folder / ref / f"{case}.json"
    if not (arrays.is_file() and record.is_file()):
        pytest.skip(f"no oracle {ref}/{case} in {folder}; set DDM_ORACLES to a folder that has it")
    with np.load(arrays) as npz:
        return dict(npz), json.loads(record.read_text())
