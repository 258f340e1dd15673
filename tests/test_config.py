"""Every setting reaches the frozen config or is refused; every recipe fits together."""

import dataclasses
import importlib.util
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from ddm_jax import config as config_module
from ddm_jax import experiment
from ddm_jax.config import Config, defaults, field_type, lookup, resolve, variants
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.errors import UserError
from ddm_jax.settle import settle

RECIPES = sorted(Path(__file__).parents[1].glob("configs/*.py"))


def all_fields(record=Config, prefix=""):
    """(path, dataclass field) of everything that can be set."""
    for f in dataclasses.fields(record):
        if dataclasses.is_dataclass(f.type):
            yield from all_fields(f.type, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f


# tests/test_plugins.py has plugins
FIELDS = {path: f for path, f in all_fields() if path != "plugins"}


def with_field(path, value):
    """The default config with one field changed, past ml_collections' own checks and casts."""
    values = defaults().to_dict()
    *sections, name = path.split(".")
    (values[sections[0]] if sections else values)[name] = value
    return ConfigDict(values)


def read(config, path):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def another_value(path):
    """A legal value other than the default."""
    f, kind = FIELDS[path], field_type(path)
    if "allowed" in f.metadata:
        return f.metadata["allowed"][1]
    if kind is bool:
        return not f.default
    if kind is str:
        return f"{f.default}_other"
    if kind is int:
        return 2 * (f.default or 0) or 1
    return f.default / 2 if f.default else 0.25


def test_defaults_resolve_to_the_dataclasses():
    assert resolve(defaults()) == Config()


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_reaches_the_frozen_config_alone(path):
    value = another_value(path)
    resolved = resolve(with_field(path, value))
    assert read(resolved, path) == value
    assert type(read(resolved, path)) is field_type(path)
    changed = [other for other in FIELDS if read(resolved, other) != read(Config(), other)]
    assert changed == [path]


def test_frozen_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve(defaults()).train.steps = 3


def test_whole_number_will_do_for_a_number():
    lr = resolve(with_field("optim.lr", 1)).optim.lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize("path", FIELDS)
def test_value_of_another_type_is_refused(path):
    wrong = {int: [1.5, True, "3", None], float: [True, "0.1"], bool: [1, "true"], str: [3, None]}
    optional = FIELDS[path].default is None
    for value in wrong[field_type(path)]:
        if value is None and optional:
            continue
        with pytest.raises(UserError, match=f"config.{path}={value!r} has the wrong type: give "):
            resolve(with_field(path, value))


@pytest.mark.parametrize("path", [p for p, f in FIELDS.items() if "low" in f.metadata])
def test_number_out_of_range_is_refused(path):
    low, high = FIELDS[path].metadata["low"], FIELDS[path].metadata["high"]
    beyond = [low - 1] + ([high + 1] if math.isfinite(high) else [])
    if field_type(path) is float:
        beyond += [math.nan, math.inf]
    for value in beyond:
        with pytest.raises(UserError, match=f"config.{path}=.* is out of range: .*{low}"):
            resolve(with_field(path, value))


@pytest.mark.parametrize("path", [p for p, f in FIELDS.items() if "allowed" in f.metadata])
def test_unknown_word_is_refused_with_the_known_ones(path):
    with pytest.raises(UserError) as error:
        resolve(with_field(path, "nonesuch"))
    assert f"config.{path}='nonesuch' is unknown" in str(error.value)
    assert ", ".join(filter(None, FIELDS[path].metadata["allowed"])) in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("trian", 3, r"config.trian is unknown \(did you mean train\?\): .* seed, plugins, model,"),
        ("train.stepz", 3, r"config.train.stepz is unknown \(did you mean steps\?\): .*batch_size"),
        ("train.qqqq", 3, r"config.train.qqqq is unknown: config.train has .*batch_size"),
        ("train", 3, "config.train must be a section of fields, not 3"),
        ("model.heads", 5, r"width=768 does not split into config.model.heads=5 .*multiple of 10"),
        ("model.heads", 256, "multiple of 512"),  # heads of width 3: rotary pairs need it even
        ("train.microbatches", 3, "batch_size=512 is not divisible by .*microbatches=3"),
    ],
)
def test_what_does_not_fit_is_named(path, value, complaint):
    with pytest.raises(UserError, match=complaint):
        resolve(with_field(path, value))


def test_held_out_text_must_leave_some_to_train_on():
    config = defaults()
    config.data.validation_fraction = config.data.test_fraction = 0.5
    with pytest.raises(UserError, match="leave no text to train on"):
        resolve(config)


@pytest.mark.parametrize("path", ["train", "train.steps.x", "train.stepz", "nonesuch.steps"])
def test_field_type_refuses_what_is_no_field(path):
    with pytest.raises(UserError, match=f"config.{path.split('.')[0]}"):
        field_type(path)


def test_first_word_of_an_argument_is_its_default():
    allowed = {"loss": ("a", "b"), "size": ("small", "large")}
    for arg in (None, ""):
        assert variants(arg, **allowed) == {"loss": "a", "size": "small"}
    assert variants("size=large", **allowed) == {"loss": "a", "size": "large"}
    assert variants("loss=b,size=large", **allowed) == {"loss": "b", "size": "large"}


@pytest.mark.parametrize("arg", ["loss=c", "los=a", "loss", "a", "loss=a,size=huge"])
def test_unknown_argument_is_refused_with_the_known_ones(arg):
    with pytest.raises(UserError) as error:
        variants(arg, loss=("a", "b"), size=("small", "large"))
    assert repr(arg.split(",")[-1]) in str(error.value)
    assert "loss=a|b; size=small|large" in str(error.value)


def test_recipe_without_variants_says_so():
    with pytest.raises(UserError, match="'x=1' is unknown: this recipe takes none"):
        variants("x=1")


def test_lookup_finds_the_entry_or_lists_the_names():
    table = {"b": 2, "a": 1}
    assert lookup(table, "b", "config.x") == 2
    with pytest.raises(UserError, match=r"config.x='c' is unknown: choose one of a, b\."):
        lookup(table, "c", "config.x")


class Mine(str):
    """An argument that is not the one of a base recipe."""


def recipe_variants(path, monkeypatch):
    """(get_config, every argument that it takes)."""
    seen = {}

    def spy(arg, **allowed):
        if isinstance(arg, Mine):
            seen.update(allowed)
        return variants(arg, **allowed)

    monkeypatch.setattr(config_module, "variants", spy)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.get_config(Mine())
    words = itertools.product(*seen.values())
    args = [",".join(f"{k}={w}" for k, w in zip(seen, row, strict=True)) for row in words]
    return module.get_config, args


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_variant_of_every_recipe_fits_together(path, monkeypatch, tmp_path):
    """All but its data: a stand-in has the tokens, another file their embeddings."""
    table = tmp_path / "table.npy"
    np.save(table, np.random.default_rng(0).normal(size=(100, 4)))
    data = SimpleNamespace(
        tokenizer=SimpleNamespace(vocab_size=100), records=lambda split: SimpleNamespace()
    )

    class Pairs(PreparedPairs):
        def records(self, split):
            return None

    pairs = Pairs(None, None, "", "", data.tokenizer, {})
    monkeypatch.setattr(
        experiment, "open_or_prepare", lambda c: pairs if c.source.startswith("pairs:") else data
    )
    get_config, args = recipe_variants(path, monkeypatch)
    resolved = [resolve(get_config(arg)) for arg in args]
    assert len(set(resolved)) == len(args)
    assert resolve(get_config()) == resolved[0]
    for config in resolved:
        if config.process.name == "d3pm_nearest":
            process = dataclasses.replace(config.process, embedding=str(table))
            config = dataclasses.replace(config, process=process)
        assert experiment.build(config).config == settle(config)


def test_there_are_recipes():
    assert "radd_tiny" in [path.stem for path in RECIPES]
