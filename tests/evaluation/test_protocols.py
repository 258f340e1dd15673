"""How the protocols cut text: edge cases by hand, and the published loaders' blocks of real sets.

The real sets are in DDM_DATA, or ../shared/data next to the repository. They are not a part of the
project: without the folder the tests that read them are skipped.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood.corpora import comparable, open_corpus
from ddm_jax.evaluation.likelihood.detokenisers import DETOKENISERS
from ddm_jax.evaluation.likelihood.protocols import PROTOCOLS, Document, Protocol, cut, own_rules

EOS = 99
BYTES = tokenizers.pretrained_tokenizer("bytes")
GPT2 = tokenizers.pretrained_tokenizer("gpt2")
DATA = Path(os.environ.get("DDM_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def config(length=1024, pack="wrap"):
    return SimpleNamespace(data=SimpleNamespace(length=length, pack=pack))


def document(first, count):
    """Tokens first, first + 1, ..; two bytes and one character each."""
    return Document(np.arange(first, first + count, dtype=np.int32), np.array([2.0, 1.0]) * count)


def documents(*counts):
    return [document(10 * i, n) for i, n in enumerate(counts)]


def test_wrap_joins_with_eos_and_drops_the_tail():
    blocks = cut(documents(3, 0, 4), own_rules(4, "wrap"), EOS, 4)
    np.testing.assert_array_equal(blocks.tokens, [[0, 1, 2, EOS], [EOS, 20, 21, 22]])
    assert blocks.valid.all()
    assert blocks.dropped == 2  # 23 and its EOS
    np.testing.assert_allclose(blocks.sizes, [[6, 3], [6, 3]])


def test_pad_is_one_document_a_block():
    blocks = cut(documents(2, 5, 0), own_rules(4, "pad"), EOS, 4)
    np.testing.assert_array_equal(
        blocks.tokens, [[0, 1, EOS, EOS], [10, 11, 12, 13], [EOS, EOS, EOS, EOS]]
    )
    np.testing.assert_array_equal(blocks.valid.sum(axis=1), [3, 4, 1])
    np.testing.assert_allclose(blocks.sizes, [[4, 2], [8, 4], [0, 0]])
    assert blocks.dropped == 2


def test_every_group_and_every_process_drops_its_own_tail():
    """Five documents of 3 tokens with EOS, in blocks of 4, by 2 processes: 3 and 2 documents."""
    rules = Protocol({}, "", processes=2, group=2)
    blocks = cut(documents(2, 2, 2, 2, 2), rules, EOS, 4)
    # groups: (0, 1), (2), (3, 4): 6, 3 and 6 tokens
    np.testing.assert_array_equal(blocks.tokens, [[0, 1, EOS, 10], [30, 31, EOS, 40]])
    assert blocks.dropped == 7
    whole = cut(documents(2, 2, 2, 2, 2), dataclasses.replace(rules, processes=1), EOS, 4)
    np.testing.assert_array_equal(whole.tokens, [[0, 1, EOS, 10], [20, 21, EOS, 30]])
    # processes beyond the documents have nothing to do
    many = cut(documents(3, 3), dataclasses.replace(rules, processes=8), EOS, 4)
    np.testing.assert_array_equal(many.tokens, [[0, 1, 2, EOS], [10, 11, 12, EOS]])


def test_framed_blocks_hold_two_tokens_less_of_the_text():
    rules = Protocol({}, "", framed=True)
    blocks = cut(documents(3, 2), rules, EOS, 5)
    np.testing.assert_array_equal(blocks.tokens, [[EOS, 0, 1, 2, EOS], [EOS, EOS, 10, 11, EOS]])
    assert blocks.valid.all()  # the frame counts as tokens
    np.testing.assert_allclose(blocks.sizes, [[6, 3], [4, 2]])
    assert blocks.dropped == 1


def test_no_eos_where_the_protocol_has_none():
    blocks = cut(documents(3, 3), Protocol({}, "", eos=False), EOS, 2)
    np.testing.assert_array_equal(blocks.tokens, [[0, 1], [2, 10], [11, 12]])


def test_no_documents_are_no_blocks():
    assert cut([], PROTOCOLS["sedd"], EOS, 8).tokens.shape == (0, 8)


def test_tables_name_what_there_is():
    assert set(PROTOCOLS["sedd"].sets) == {"lambada", "wikitext2", "ptb", "wikitext103", "lm1b"}
    # MDLM's seven, with both sizes of WikiText, whose held-out text is the same
    assert set(PROTOCOLS["mdlm"].sets) == {
        *("ptb", "wikitext2", "wikitext103", "lm1b", "lambada", "ag_news", "pubmed", "arxiv"),
    }
    assert [(p.processes, p.group, p.framed) for p in map(PROTOCOLS.get, ("sedd", "mdlm"))] == [
        (8, 1000, False),
        (1, 1000, True),
    ]
    for protocol in PROTOCOLS.values():
        assert {s.detokeniser for s in protocol.sets.values()} <= set(DETOKENISERS)


def test_documents_of_files(tmp_path):
    """Rows keep their ends and blank ones are empty; lines are stripped; a file is one document."""
    (tmp_path / "a.txt").write_text(" = A = \n \nb c \n")
    name = f"wikitext2={tmp_path}/a.txt"
    rows = open_corpus(name, "sedd", None, config(4), BYTES)
    assert (rows.documents, rows.name, rows.split) == (3, "wikitext2", "validation")
    assert rows.detokeniser == "wikitext"
    lines = open_corpus(f"ptb={tmp_path}/a.txt", "sedd", "test", config(4), BYTES)
    assert (lines.documents, lines.split) == (3, "test")
    text = bytes(lines.blocks.tokens[0].tolist()).decode()
    assert text == "= A "
    whole = open_corpus(f"{tmp_path}/a.txt", "", None, config(4), BYTES)
    assert (whole.documents, whole.split, whole.detokeniser) == (1, "all", "none")
    assert BYTES.decode(whole.blocks.tokens.reshape(-1)) == " = A = \n \nb c \n"
    assert whole.blocks.sizes.sum() == 2 * 15
    by_line = open_corpus(f"{tmp_path}/*.txt", "", None, config(4), BYTES, form="lines")
    assert by_line.documents == 3
    (tmp_path / "b.jsonl").write_text('{"text": "“x” "}\n{"text": "yé"}\n')
    lambada = open_corpus(f"lambada={tmp_path}/b.jsonl", "mdlm", None, config(4), BYTES)
    # \n " x " EOS  \n y, of two and two, each framed
    assert lambada.blocks.tokens[:2].tolist() == [[256, 10, 34, 256], [256, 120, 34, 256]]
    assert lambada.blocks.sizes[:2].tolist() == [[2, 2], [2, 2]]


def test_text8_is_cut_by_characters_and_counts_them(tmp_path, monkeypatch):
    sets = PROTOCOLS["text8"].sets
    spans = {"test": (6, 14), "validation": (3, 6), "train": (0, 3)}
    monkeypatch.setitem(sets, "text8", dataclasses.replace(sets["text8"], spans=spans))
    (tmp_path / "text8").mkdir()
    (tmp_path / "text8" / "text8").write_text("abcdefgh ijklmnop")
    text8 = tokenizers.pretrained_tokenizer("text8")
    corpus = open_corpus("text8", "text8", None, config(4), text8, str(tmp_path))
    assert [text8.decode(row) for row in corpus.blocks.tokens] == ["gh i", "jklm"]
    assert corpus.blocks.sizes.tolist() == [[4, 4], [4, 4]]
    assert comparable(corpus, text8, 256).startswith("with D3PM")
    assert comparable(corpus, text8, 4).startswith("no: the run reads 4 tokens")


def test_what_can_be_compared_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("some words\n" * 3000)
    corpus = open_corpus(f"ptb={tmp_path}/a.txt", "sedd", None, config(), GPT2)
    assert comparable(corpus, GPT2, 1024).startswith("with SEDD and RADD")
    assert (
        comparable(corpus, GPT2, 512) == "no: the run reads 512 tokens at once, the papers' 1,024"
    )
    assert comparable(corpus, BYTES, 1024) == "no: the run's tokenizer is bytes, the papers' gpt2"
    other = open_corpus(f"{tmp_path}/a.txt", "sedd", None, config(), GPT2)
    assert "is not a set of this protocol" in comparable(other, GPT2, 1024)


@pytest.mark.parametrize(
    ("dataset", "protocol", "split", "said"),
    [
        ("ptb", "sedd", None, "ptb.valid.txt: get it (Penn Treebank"),
        ("arxiv", "mdlm", None, "validation.jsonl: get it (Hugging Face data set scientific_"),
        ("lambada", "sedd", "validation", "is not a split of lambada in this protocol: use test"),
        ("ptb", "", None, "is a set of a protocol: add --protocol=sedd or mdlm"),
        ("ptp", "sedd", None, "neither a set of --protocol=sedd (lambada, ptb"),
        ("nowhere.txt", "", None, "matches no file: give a path"),
        ("ptb=nowhere.txt", "sedd", None, "nowhere.txt matches no file"),
        ("{}/short.txt", "", None, "has 4 tokens in 1 document, which fill no block"),
        ("lambada={}/short.txt", "sedd", None, "must be .jsonl"),
        ("{}/latin.txt", "", None, "is not UTF-8"),
    ],
)
def test_what_is_missing_or_wrong_is_said(tmp_path, dataset, protocol, split, said):
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(UserError) as error:
        open_corpus(dataset.format(tmp_path), protocol, split, config(8), BYTES, str(tmp_path))
    assert said in str(error.value)


# Blocks and sha256 of their int32 tokens as Hugging Face datasets 5.2.0 (map, batched, with SEDD's
# 8 and MDLM's 1 process) and tokenizers 0.23 (GPT-2) make them with the two repositories' loaders.
PUBLISHED = {
    ("lambada", "lambada/lambada_test.jsonl"): ((414, "e36f9b13c08b"), (417, "f77c70ee9e2c")),
    ("ptb", "ptb/ptb.valid.txt"): ((76, "bcf640c73e46"), (77, "ec7dad4e1a3b")),
    ("ptb", "ptb/ptb.test.txt"): ((86, "8b3936959251"), (86, "13da0ed2d0e8")),
    ("wikitext103", "wikitext103_eval/wiki.test.raw"): (
        (264, "06d065e7b5c4"),
        (267, "05aaf7e8e246"),
    ),
    ("wikitext2", "wikitext2/wiki.valid.tokens"): ((236, "ac2f5da8fe96"), (239, "0e66187e0478")),
}


@pytest.mark.parametrize("case", PUBLISHED, ids="-".join)
@pytest.mark.slow
def test_real_sets_are_cut_as_the_published_loaders_do(case):
    name, file = case
    if not (DATA / file).is_file():
        pytest.skip(f"no {file} in {DATA}; set DDM_DATA to a folder that has it")
    for protocol, (count, digest) in zip(("sedd", "mdlm"), PUBLISHED[case], strict=True):
        corpus = open_corpus(f"{name}={DATA / file}", protocol, None, config(), GPT2)
        tokens = corpus.blocks.tokens
        assert (tokens.shape, tokens.dtype) == ((count, 1024), np.int32)
        assert hashlib.sha256(tokens.tobytes()).hexdigest().startswith(digest)
        # nearly all of the detokenised text is in the blocks
        lost = 1 - corpus.blocks.sizes[:, 0].sum() / Path(DATA / file).stat().st_size
        assert 0 < lost < 0.25


def test_lambada_is_read_from_its_file_below_the_root(tmp_path):
    (tmp_path / "lambada").mkdir()
    lines = [json.dumps({"text": "word " * 40})] * 60
    (tmp_path / "lambada" / "lambada_test.jsonl").write_text("\n".join(lines))
    corpus = open_corpus("lambada", "sedd", None, config(64), GPT2, str(tmp_path))
    assert (corpus.split, corpus.documents) == ("test", 60)
