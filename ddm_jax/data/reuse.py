"""Whether a finished set is the one that is asked for; if not, why, in one sentence."""

import dataclasses

from ddm_jax.data import sources
from ddm_jax.data.prepared import PreparedSet, PrepareSpec
from ddm_jax.errors import UserError


def same_spec(prepared: PreparedSet, spec: PrepareSpec) -> PreparedSet:
    """Refuses a set that was prepared from another spec."""
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
    return prepared


def unchanged(prepared: PreparedSet) -> PreparedSet:
    """Refuses a set whose local text has been edited since; text that is gone is no obstacle."""
    source = prepared.spec.source
    try:
        changed = sources.stamp(source) != prepared.source_stamp
    except UserError:
        return prepared
    # Files that were only copied or touched have another stamp and the same fingerprint.
    if changed and sources.fingerprint(sources.open_source(source)) != prepared.source_fingerprint:
        raise UserError(
            f"The text of data.source={source} has changed since {prepared.folder} was prepared: "
            "remove that folder to prepare it again, or give the folder as data.source to use it "
            "as it is."
        )
    return prepared
