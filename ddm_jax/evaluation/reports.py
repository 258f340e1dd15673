"""What the reports of likelihoods, samples and translations share: parts, JSON and printing."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.runs.files import write_new
from ddm_jax.runs.record import git_revision, versions


def weights_hash(params: Any) -> str:
    """sha256 (hex) of all arrays of a tree, in order, with their paths, shapes and dtypes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def short_hash(record: Mapping[str, Any]) -> str:
    """The first 8 hex digits of the sha256 of a record's JSON, for the name of a file."""
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:8]


def environment() -> dict[str, Any]:
    """Where numbers were computed: kinds of devices, package versions, revision of this code."""
    return {
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def perplexity(nats_per_token: float) -> float:
    """exp, or inf where a float64 cannot hold it."""
    return math.exp(nats_per_token) if nats_per_token < 700 else math.inf


def to_json(report: Any) -> Any:
    """A copy whose floats that are not finite, at any depth, are None, since JSON has no nan."""
    if isinstance(report, Mapping):
        return {name: to_json(x) for name, x in report.items()}
    if isinstance(report, list | tuple):
        return [to_json(x) for x in report]
    return None if isinstance(report, float) and not math.isfinite(report) else report


def write_report(folder: Path, stem: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Writes STEM.json into the folder, under the next free name; adds its path as `out`."""
    out = write_new(folder / f"{stem}.json", json.dumps(report, indent=2) + "\n")
    return {**report, "out": str(out)}
