"""Held-out splits, decided by a hash of each document's text before anything is packed.

Equal texts always fall in the same split, so a held-out document is never trained on, whatever the
order, the number of files or the number of workers.
"""

import dataclasses
import hashlib
from collections.abc import Mapping

from ddm_jax.errors import UserError

SPLITS = ("train", "validation", "test")
# The number was chosen, by nothing but the dates of the messages, so that both held-out splits of
# the embedded corpus spread over 1790-2026.
_SALT = b"ddm_jax split 183"


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Fractions of the documents of `train` that go to the other splits.

    Attributes:
      validation: fraction for the split `validation`.
      test: fraction for the split `test`.
    """

    validation: float
    test: float

    def __post_init__(self) -> None:
        for name, value in (("validation", self.validation), ("test", self.test)):
            if not 0 <= value < 1:
                raise UserError(f"data.{name}_fraction={value} must be at least 0 and less than 1.")
        if self.validation + self.test >= 1:
            raise UserError(
                f"data.validation_fraction={self.validation} and data.test_fraction={self.test} "
                "leave nothing to train on: their sum must be less than 1."
            )


def without_own_splits(held_out: HeldOut, own: Mapping[str, object]) -> HeldOut:
    """Sets the fraction of each split in `own` to 0: the source already has that split."""
    return HeldOut(
        validation=0.0 if "validation" in own else held_out.validation,
        test=0.0 if "test" in own else held_out.test,
    )


def split_of(text: str, held_out: HeldOut) -> str:
    """Returns the split of a document of `train`."""
    u = hash_position(text)
    if u < held_out.test:
        return "test"
    return "validation" if u >= 1 - held_out.validation else "train"


def hash_position(text: str) -> float:
    """Maps the text to a number in [0, 1) by a hash."""
    digest = hashlib.sha256(_SALT + text.encode()).digest()
    # 53 bits: the quotient is exact, and below 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
