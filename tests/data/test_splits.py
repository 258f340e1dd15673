import re

import numpy as np
import pytest

from ddm_jax.data.sources import registry as sources
from ddm_jax.data.splits import SPLITS, HeldOut, split_of, without_own_splits
from ddm_jax.errors import UserError


def test_fractions_are_those_asked_for():
    held_out = HeldOut(validation=0.1, test=0.2)
    found = [split_of(f"document {i}", held_out) for i in range(20_000)]
    shares = [found.count(split) / len(found) for split in SPLITS]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.01)


def test_held_out_documents_stay_held_out_when_the_other_split_grows():
    texts = [f"document {i}" for i in range(2_000)]
    small, large = HeldOut(0.1, 0.1), HeldOut(0.1, 0.5)
    in_test = {t for t in texts if split_of(t, small) == "test"}
    assert in_test < {t for t in texts if split_of(t, large) == "test"}
    assert {t for t in texts if split_of(t, small) == "validation"} == {
        t for t in texts if split_of(t, large) == "validation"
    }


def test_no_fraction_holds_nothing_out():
    assert {split_of(f"{i}", HeldOut(0, 0)) for i in range(1_000)} == {"train"}


def test_splits_of_the_source_are_not_carved_again():
    assert without_own_splits(HeldOut(0.1, 0.2), {"train": 0, "test": 0}) == HeldOut(0.1, 0.0)


def test_embedded_held_out_splits_spread_over_the_centuries():
    (shards,) = sources.open_source("embedded").shards.values()
    years = [int(span.path.name[:4]) for shard in shards for span in shard.read.args[1]]
    texts = [text for shard in shards for text in shard.read()]
    for split in ("validation", "test"):
        found = [
            y
            for y, t in zip(years, texts, strict=True)
            if split_of(t, HeldOut(0.04, 0.04)) == split
        ]
        assert len(found) >= 10
        assert np.histogram(found, bins=range(1790, 2031, 40))[0].all()


@pytest.mark.parametrize(
    ("validation", "test", "complaint"),
    [
        (-0.1, 0.1, "data.validation_fraction=-0.1"),
        (0.1, 1.0, "data.test_fraction=1.0"),
        (0.5, 0.5, "leave nothing to train on"),
    ],
)
def test_impossible_fractions_are_named(validation: float, test: float, complaint: str):
    with pytest.raises(UserError, match=re.escape(complaint)):
        HeldOut(validation, test)
