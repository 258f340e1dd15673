"""Tokens of a pair, and the buckets that pairs belong to."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from ddm_jax.data import pair_encoding
from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from tests.data.corpora import WORDS, english, pair_spec, write_pairs


@pytest.mark.parametrize("spec", ["bytes", "gpt2", "sentencepiece:600"])
def test_texts_are_the_decoded_tokens(spec: str):
    tokenizer = tokenizers.make(spec, lambda: [f" {text}" for text in english()])
    for text in [" ".join(WORDS), "a", "", "two  spaces", "a\tb", "</s> <|endoftext|>"]:
        ids = pair_encoding.encode(tokenizer, text)
        assert ids.dtype == np.int32
        assert tokenizer.eos_id not in ids
        assert pair_encoding.decode(tokenizer, ids) == text
        tail = [tokenizer.eos_id, *pair_encoding.encode(tokenizer, "more"), tokenizer.eos_id]
        assert pair_encoding.decode(tokenizer, [*ids, *tail]) == text


def test_word_has_the_same_pieces_first_and_inside(tmp_path: Path):
    texts = english()
    path = write_pairs(tmp_path / "a.jsonl", [(text, text[::-1]) for text in texts])
    spec = pair_spec(path, tokenizer="sentencepiece:600", length=256, source_length=256)
    tokenizer = prepare_pairs(spec, tmp_path / "set", progress=False).tokenizer
    for word in " ".join(texts[:20]).split():
        alone, inside = (pair_encoding.encode(tokenizer, text) for text in (word, f"x {word}"))
        np.testing.assert_array_equal(inside[-len(alone) :], alone)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_bucket_is_twice_as_long_as_the_last(number: int):
    shapes = pair_encoding.bucket_shapes(64, 32, number)
    assert len(shapes) == number
    assert shapes[-1] == (32, 64)
    for (s, n), following in itertools.pairwise(shapes):
        assert (2 * s, 2 * n) == following


def test_pair_goes_to_the_smallest_bucket_that_holds_it():
    shapes = pair_encoding.bucket_shapes(16, 32, 3)
    lengths = np.array([(s, n) for s in range(1, 40) for n in range(1, 20)])
    for (s, n), kind in zip(lengths, pair_encoding.bucket_of(lengths, shapes), strict=True):
        holding = [k for k, (most, longest) in enumerate(shapes) if s <= most and n <= longest]
        assert kind == min(holding, default=3)
