"""Translation around a network that copies: lengths, shapes, order, choice of candidates, refusals.

The network reads the answer from the memory of the source, so that every text is known beforehand.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import defaults, resolve
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_process, make_sampler
from ddm_jax.generation import translator as programs
from ddm_jax.generation.candidates import mbr
from ddm_jax.generation.translation import translate
from ddm_jax.generation.translator import make_translator
from ddm_jax.models.network import Network, padded_vocab
from ddm_jax.models.readout import Readout
from ddm_jax.models.source_memory import Memory
from ddm_jax.objectives.source import length_loss
from ddm_jax.parallel.layouts import dp
from ddm_jax.settle import settle

TOKENIZER = tokenizers.pretrained_tokenizer("bytes")
VOCAB = TOKENIZER.vocab_size
LONGEST = 32


@functools.cache
def copying_network(off_by=0, sure=20.0):
    """Says the source, one token for one, at any step; its first choice of a length is off.

    It is `sure` where the length is that of the source, and half as sure elsewhere.
    """

    def encode(params, source, valid, *, dropout_keys=None):
        words = valid.sum(axis=1) - 1
        wanted = jax.nn.one_hot(words + off_by, LONGEST) * 2 + jax.nn.one_hot(words, LONGEST)
        ids = source.astype(jnp.float32)[None, :, :, None, None]
        return Memory(k=ids, v=ids, valid=valid, length_logits=wanted)

    def apply(params, tokens, sigma=None, *, memory, seen, **_):
        ids = memory.k[0, :, :, 0, 0].astype(jnp.int32)
        room = tokens.shape[1] - ids.shape[1]
        ids = jnp.pad(ids, ((0, 0), (0, max(room, 0))))[:, : tokens.shape[1]]
        right = seen.sum(axis=1) == memory.valid.sum(axis=1)
        hidden = (
            jax.nn.one_hot(ids, padded_vocab(VOCAB))
            * jnp.where(right, sure, sure / 2)[:, None, None]
        )
        return Readout(hidden, jnp.eye(padded_vocab(VOCAB)), jnp.zeros(padded_vocab(VOCAB)), VOCAB)

    return Network(init=lambda key: {}, apply=apply, vocab_size=VOCAB, encode=encode)


def unsettled(**sampler):
    config = defaults()
    config.model.kind = "encoder_decoder"
    config.data.source = "pairs:embedded"
    config.data.length = config.data.source_length = LONGEST
    config.data.buckets = 3
    config.objective.name = "rdm_absorb"
    config.process.steps = 4
    config.eval.batch_size = 8
    config.sampler.update({"name": "rdm", "steps": 2, "temperature": 0.0} | sampler)
    return config


def make_config(**sampler):
    return settle(resolve(unsettled(**sampler)))


@functools.cache
def shared_translator(network, config):
    process, layout = make_process(config.process, config.schedule, VOCAB), dp(jax.devices()[:2])
    return make_translator(network, process, make_sampler(config), config, TOKENIZER, layout)


def translator_of(network, config=None):
    """A translator that has compiled nothing; but jax compiles once what several tests run."""
    shared = shared_translator(network, config or make_config())
    new = {name: copy.copy(getattr(shared, name)) for name in ("lengths", "draw")}
    for program in new.values():
        program._compiled = {}
    return dataclasses.replace(shared, **new)


SOURCES = ["to be or not to be", "a", "", "that is", "the question", " ", "x" * 30, "żółw"]
CLEAN = [text.strip() for text in SOURCES]


@pytest.mark.slow
def test_each_source_gets_its_own_target_whatever_its_length():
    translator = translator_of(copying_network())
    made = translate(translator, {}, SOURCES)
    assert made.texts == CLEAN
    assert made.candidates == [[text] for text in CLEAN]
    assert made.nfe == [2 if text else 0 for text in CLEAN]
    assert made.seconds > 0
    assert made.compile_s > 0
    again = translate(translator, {}, SOURCES[::-1])
    assert again.texts == CLEAN[::-1]
    assert again.compile_s == 0  # no new shape


@pytest.mark.slow
def test_more_sources_than_fit_a_batch():
    sources = [f"source {i} " + "y" * (i % 19) for i in range(37)]
    assert translate(translator_of(copying_network()), {}, sources).texts == [
        text.strip() for text in sources
    ]


def test_few_programs_run_on_full_batches(monkeypatch):
    translator = translator_of(copying_network())
    sources = [text + "z" * i for text in CLEAN if text and len(text) < 20 for i in range(6)]
    calls, call = [], programs.TimedProgram.__call__

    def counted(self, *args, **rows):
        if "prompt" in rows:
            calls.append(rows["prompt"].shape)
        return call(self, *args, **rows)

    monkeypatch.setattr(programs.TimedProgram, "__call__", counted)
    translate(translator, {}, sources)
    shapes = set(calls)
    assert len(shapes) <= 3
    assert len(calls) <= len(sources) // 8 + len(shapes)
    assert len(translator.lengths._compiled) <= 3


@pytest.mark.slow
def test_there_is_room_for_the_eos():
    """Six tokens and an EOS of source fit in eight, not so eight of target and theirs."""
    translator = translator_of(copying_network(off_by=2))
    translate(translator, {}, ["abcde"])
    ((_, _, prompt, *_),) = translator.draw._compiled
    assert prompt[1] == 16


@pytest.mark.slow
def test_a_target_has_a_word_and_fits():
    """A network that would have none, or more than there is room for, gets its next choice."""
    network = copying_network()

    def encode(params, source, valid, **_):
        memory = network.encode(params, source, valid)
        absurd = 9 * (jnp.arange(LONGEST + 1) % LONGEST == 0)  # lengths 0 and LONGEST
        logits = jnp.pad(memory.length_logits, ((0, 0), (0, 1))) + absurd
        return dataclasses.replace(memory, length_logits=logits)

    translator = translator_of(dataclasses.replace(network, encode=encode))
    assert translate(translator, {}, ["one word", "two"]).texts == ["one word", "two"]


@pytest.mark.slow
def test_the_best_length_is_chosen_by_score_among_the_likely_ones():
    network = copying_network(off_by=-1)
    wrong = translate(translator_of(network), {}, ["right length"])
    assert wrong.texts != ["right length"]
    config = make_config(lengths=2)
    right = translate(translator_of(network, config), {}, ["right length", "too"])
    assert right.texts == ["right length", "too"]
    assert [len(of) for of in right.candidates] == [2, 2]
    assert right.nfe == [4, 4]


@pytest.mark.slow
def test_the_candidate_of_least_risk_is_chosen(monkeypatch):
    config = make_config(candidates=3, selection="mbr", temperature=1.0)
    translator = translator_of(copying_network(sure=4.0), config)
    made = translate(translator, {}, ["some words to say", "and others"])
    assert len(set(made.candidates[0])) > 1  # it is not sure: the draws differ
    chosen = [of[mbr(of)] for of in made.candidates]
    assert made.texts == chosen
    assert translate(translator, {}, ["some words to say", "and others"]).texts == made.texts
    other = translate(translator, {}, ["some words to say", "and others"], seed=1)
    assert other.candidates != made.candidates


def test_a_source_too_long_is_refused_by_its_line():
    with pytest.raises(UserError, match=r"Line 2 of FILE has 34 tokens .*source_length=32"):
        translate(translator_of(copying_network()), {}, ["good", "x" * 32], name="FILE")


@pytest.mark.slow
def test_where_the_eos_is_predicted_it_may_come_anywhere():
    """One more place is drawn then, in which a network that copies writes the source's EOS."""
    config = make_config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, eos="predicted"))
    assert translate(translator_of(copying_network(), config), {}, SOURCES).texts == CLEAN


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sampler.lengths": 2, "sampler.name": "ancestral"}, "needs a sampler that scores, rdm"),
        ({"data.source": "embedded"}, "needs a source for every target"),
        ({"model.kind": "lm"}, "is parallel text"),
        ({"model.max_length": 16}, "raise it to 32"),
        ({"objective.weighting": "elbo"}, "use one of linear, reciprocal, none"),
        ({"objective.name": "bd3lm"}, "does not fit config.model.kind"),
        ({"model.time": "adaln"}, "use 'input' or 'none'"),
    ],
)
def test_config_of_pairs_is_checked(changes, sentence):
    config = unsettled()
    for name, value in changes.items():
        section, field = name.split(".")
        config[section][field] = value
    with pytest.raises(UserError, match=sentence):
        settle(resolve(config))


def test_length_loss_is_the_cross_entropy_of_the_length():
    logits = np.random.default_rng(0).normal(size=(3, LONGEST)).astype(np.float32)
    memory = Memory(k=0, v=0, valid=0, length_logits=jnp.asarray(logits))
    seen = np.arange(9) < np.array([1, 4, 9])[:, None]  # 0, 3 and 8 words, and the EOS
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.log(p[[0, 1, 2], [0, 3, 8]])
    np.testing.assert_allclose(length_loss(memory, {"seen": seen}), expected, rtol=1e-5)
