"""Whether a finished set is the one that is asked for; if not, why, in one sentence."""

import dataclasses
from pathlib import Path

from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs, open_folder
from ddm_jax.data.sets.text import PreparedSet, PrepareSpec
from ddm_jax.errors import UserError


def finished(folder: Path, spec: PrepareSpec | PairSpec) -> PreparedSet | PreparedPairs:
    """Opens a finished set that was prepared from this spec.

    Raises:
        UserError: it is of another spec, its text has been edited since, or it is damaged.
    """
    prepared = open_folder(folder)
    _same_spec(prepared, spec)
    _unchanged(prepared)
    return prepared


def _same_spec(prepared: PreparedSet | PreparedPairs, spec: PrepareSpec | PairSpec) -> None:
    for field in dataclasses.fields(spec):
        has, wants = getattr(prepared.spec, field.name), getattr(spec, field.name)
        if has != wants:
            raise UserError(
                f"{prepared.folder} was prepared with {field.name}={has}, not {wants}: choose "
                "another folder."
            )
    if not prepared.has_tokenizer(spec.tokenizer):
        raise UserError(
            f"{prepared.folder} was prepared with another {spec.tokenizer} than there is now: "
            "choose another folder."
        )


def _unchanged(prepared: PreparedSet | PreparedPairs) -> None:
    """Refuses a set whose local text has been edited since; text that is gone is no obstacle."""
    spec = prepared.spec
    try:
        changed = spec.stamp() != prepared.source_stamp
    except UserError:
        return
    # Files that were only copied or touched have another stamp and the same fingerprint.
    if changed and spec.fingerprint() != prepared.source_fingerprint:
        raise UserError(
            f"The text of data.source={spec.source} has changed since {prepared.folder} was "
            "prepared: remove that folder to prepare it again, or give the folder as data.source "
            "to use it as it is."
        )
