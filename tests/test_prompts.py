import io

import numpy as np
import pytest
import sentencepiece

from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.generation.prompts import between, from_template, read_template
from tests.data.corpora import english

LENGTH = 12
BYTES = tokenizers.pretrained_tokenizer("bytes")
TEXT8 = tokenizers.pretrained_tokenizer("text8")


def shown(prompt):
    """A prompt of bytes or text8 as text, with _ where a token is to be drawn."""
    assert prompt.tokens.dtype == np.int32
    assert prompt.fixed.dtype == bool
    assert not prompt.tokens[~prompt.fixed].any()
    return "".join(
        chr(token) if fixed else "_"
        for token, fixed in zip(prompt.tokens, prompt.fixed, strict=True)
    )


@pytest.mark.parametrize(
    ("prefix", "suffix", "laid_out"),
    [
        ("", "", "____________"),
        ("ab ", "", "ab _________"),
        ("", " yz", "_________ yz"),
        ("ab ", " yz", "ab ______ yz"),
        ("abcdef", "uvxyz", "abcdef_uvxyz"),
    ],
)
def test_prefix_and_suffix_stand_at_the_ends(prefix, suffix, laid_out):
    assert shown(between(prefix, suffix, BYTES, LENGTH)) == laid_out


@pytest.mark.parametrize(
    ("template", "laid_out"),
    [
        ("ab{{3}}c", "ab___c______"),
        ("{{3}}c", "___c________"),
        ("a{{}}z", "a__________z"),
        ("{{}}", "____________"),
        ("{{2}}a{{}}b{{3}}z", "__a____b___z"),
        ("a{{1}}{{2}}b", "a___b_______"),
        ("abcde{{7}}", "abcde_______"),
        ("abcde{{}}fg{{5}}", "abcdefg_____"),  # nothing is left for {{}}
        ("{a}\n{{}}}{", "{a}\n______}{"),
    ],
)
def test_blanks_of_a_template_take_their_tokens(template, laid_out):
    assert shown(from_template(template, BYTES, LENGTH)) == laid_out


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("all fixed", ["has no blank", "{{5}}"]),
        ("{5}", ["has no blank"]),
        ("a{{}}b{{}}c{{}}", ["3 blanks {{}}", "only one"]),
        ("a{{x}}", ["{{x}}", "whole number"]),
        ("a{{0}}", ["{{0}}", "at least 1"]),
        ("a{{-3}}", ["{{-3}}"]),
        ("a{{1.5}}", ["{{1.5}}"]),
        ("a{{{3}}}", ["{{{3}}"]),
        ("a{{" + "9" * 5000 + "}}", ["{{99999"]),
        ("{{3}}{{x}}", ["{{x}}"]),
        ("a{{12}}", ["takes 13 tokens", "the 12 of"]),
        ("a{{}}b{{11}}", ["takes 13 tokens"]),
        ("abcdefghijkl{{}}", ["takes all 12 tokens", "nothing to draw"]),
    ],
)
def test_bad_template_is_refused_in_one_sentence(template, parts):
    with pytest.raises(UserError) as raised:
        from_template(template, BYTES, LENGTH)
    assert_one_sentence(str(raised.value), *parts)


@pytest.mark.parametrize(
    ("prefix", "suffix", "parts"),
    [
        ("abcdefghijklm", "", ["takes 13 tokens", "--length"]),
        ("abcdefgh", "uvxyz", ["takes 13 tokens"]),
        ("abcdefg", "uvxyz", ["takes all 12 tokens", "nothing to draw"]),
        ("a\udcffb", "", [r"'\udcff'", "bytes"]),
    ],
)
def test_bad_prefix_or_suffix_is_refused_in_one_sentence(prefix, suffix, parts):
    with pytest.raises(UserError) as raised:
        between(prefix, suffix, BYTES, LENGTH)
    assert_one_sentence(str(raised.value), *parts)


def assert_one_sentence(message, *parts):
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 300
    for part in parts:
        assert part in message


def test_template_file_is_read_without_its_last_newline(tmp_path):
    for content, text in {
        b"a {{3}}\nb\n": "a {{3}}\nb",
        b"a{{3}}\r\n": "a{{3}}",
        b"\xef\xbb\xbfa{{3}}\n\n": "a{{3}}\n",
        "é{{3}}".encode(): "é{{3}}",
    }.items():
        (tmp_path / "template").write_bytes(content)
        assert read_template(tmp_path / "template") == text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        ("é{{3}}".encode("latin1"), "not UTF-8"),
    ],
)
def test_template_file_that_cannot_be_read_is_named(tmp_path, content, part):
    path = tmp_path / "template"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_template(path)
    assert_one_sentence(str(raised.value), f"--template={path}", part)


@pytest.fixture(scope="module", params=["sentencepiece:600", "gpt2"])
def pieces(request) -> Tokenizer:
    return tokenizers.make(request.param, english)


@pytest.mark.parametrize("text", ["The state", " of the Union", "two  spaces \n", "né 日本 🎈</s>"])
def test_text_of_a_prompt_decodes_to_itself(pieces, text):
    prompt = between(text, text, pieces, 100)
    count = prompt.fixed.sum() // 2
    assert pieces.decode(prompt.tokens[:count]) == text
    assert pieces.decode(prompt.tokens[-count:]) == text


def test_text_on_both_sides_of_a_blank_is_encoded_by_itself(pieces):
    prompt = from_template("The sta{{2}}te", pieces, 50)
    left, right = pieces.encode("The sta"), pieces.encode("te")
    np.testing.assert_array_equal(prompt.tokens[: len(left)], left)
    start = len(left) + 2
    np.testing.assert_array_equal(prompt.tokens[start : start + len(right)], right)
    assert prompt.fixed.sum() == len(left) + len(right)


def without_byte_fallback() -> Tokenizer:
    """A model that knows the letters of its text alone."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the state of the union is strong"] * 50),
        model_writer=model,
        model_type="bpe",
        vocab_size=40,
        eos_id=1,
        bos_id=-1,
        unk_id=0,
        minloglevel=2,
    )
    return Tokenizer("mine", "sentencepiece", 40, 1, model.getvalue())


def test_character_without_a_token_is_named():
    tokenizer = without_byte_fallback()
    assert between("the union", " of state", tokenizer, 50).fixed.any()
    for text in ("the €uro", "state of €"):
        with pytest.raises(UserError) as raised:
            between("the", text, tokenizer, 50)
        assert_one_sentence(str(raised.value), "'€'", "tokenizer mine")


@pytest.mark.parametrize(
    ("text", "wrong"), [("The", "'T'"), ("in 1999", "'1'"), ("a\nb", r"'\n'"), ("a  b", "'  '")]
)
def test_text_that_text8_would_rewrite_is_named(text, wrong):
    with pytest.raises(UserError) as raised:
        between(text, "", TEXT8, LENGTH)
    assert_one_sentence(str(raised.value), wrong, "text8")
    assert between(" the a ", " b ", TEXT8, LENGTH).fixed.sum() == 10
