"""The two kinds of prepared sets, of text and of pairs, for what works with either."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddm_jax.data.sets.folder import FORMAT, read_description
from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs, open_pairs
from ddm_jax.data.sets.text import PreparedText, TextSpec, open_text
from ddm_jax.data.sources.pair_files import is_pair_source

Spec = TextSpec | PairSpec
PreparedSet = PreparedText | PreparedPairs


def spec_type(source: str) -> type[TextSpec] | type[PairSpec]:
    """Returns the type of spec that a value of `data.source` needs."""
    return PairSpec if is_pair_source(source) else TextSpec


def default_folder(root: str | Path, spec: Spec) -> Path:
    """Returns `root`/words-hash8 of a spec, with a hash of all its fields."""
    spec = spec.absolute()
    fields = {"format": FORMAT, **dataclasses.asdict(spec)}
    if isinstance(spec, TextSpec):
        # Text had no named splits once: without them a set keeps the folder that it had then.
        fields = {name: value for name, value in fields.items() if value != ""}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]
    return Path(root).expanduser() / "-".join([*spec.words, digest])


def spec_of(description: Mapping[str, Any]) -> Spec:
    """Returns what a set was prepared from, by its `description`.

    Raises:
      KeyError, TypeError: this is not a description.
    """
    spec = description["spec"]
    return spec_type(spec["source"])(**spec)


def open_folder(folder: Path) -> PreparedSet:
    """Opens a finished set of either kind.

    Raises:
      UserError: there is none, it has another format, or its files are damaged.
    """
    spec = read_description(folder).get("spec")
    if isinstance(spec, dict) and is_pair_source(str(spec.get("source"))):
        return open_pairs(folder)
    return open_text(folder)
