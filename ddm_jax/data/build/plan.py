"""What preparing text and preparing pairs have in common: the plan that is shown, empty splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from ddm_jax.data.sets.kinds import Spec
from ddm_jax.errors import UserError
from ddm_jax.progress import say

TRAINS_TOKENIZER = "Training the tokenizer on what was read"  # which takes up to minutes


def announce(spec: Spec, files: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Says on stderr what is about to be prepared.

    Args:
      spec: what to prepare.
      files: field that names a source -> its files; none if it has no files of its own.
      out: the folder of the set.
    """
    parts = []
    for field, named in spec.named.items():
        paths = files[field]
        size = tqdm.format_sizeof(sum(path.stat().st_size for path in paths))
        count = f"{len(paths)} file{'s' if len(paths) > 1 else ''}"
        parts.append(f"{field}={named}" + (f" ({count}, {size}B)" if paths else ""))
    say(f"Preparing {', '.join(parts)}, tokenizer={spec.tokenizer}, in {out}")


def check_asked(spec: Spec, split: str, got: str, lower: str) -> None:
    """Refuses an empty split, unless its fraction is 0 and no source was named for it.

    Args:
      spec: what is being prepared.
      split: the split, "validation" or "test".
      got: what it has, for the message.
      lower: the field that makes text fit if it is lowered or raised, with the verb.

    Raises:
      UserError: the spec asks for this split.
    """
    fraction, named = getattr(spec, f"{split}_fraction"), getattr(spec, split)
    if named:
        raise UserError(f"data.{split}={named} gives {got}: {lower}, or add text to it.")
    if fraction:
        raise UserError(
            f"data.source={spec.source} gives the {split} split {got}: raise "
            f"data.{split}_fraction={fraction:g} (0: no such split), name a source with "
            f"data.{split}=..., {lower}, or add text."
        )
