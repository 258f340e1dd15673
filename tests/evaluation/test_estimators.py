"""Which objectives estimate the likelihood of a run, and which one is chosen."""

import dataclasses
from pathlib import Path

import pytest

from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood import estimators
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.settle import settle
from tests.trained import make_config

NOWHERE = Path("nowhere")  # no text is read


@pytest.mark.parametrize(
    ("objective", "options", "expected"),
    [
        ("ar", {}, {"ar"}),
        ("sedd_uniform", {}, {"sedd_uniform"}),
        ("udlm", {}, {"udlm"}),
        ("gidd", {}, {"gidd"}),
        ("genmd4", {}, {"genmd4"}),
        ("bd3lm", {}, {"bd3lm"}),
        ("d3pm", {}, {"d3pm"}),
        ("mdlm", {"model__time": "adaln"}, {"mdlm", "md4", "sedd_absorb"}),
    ],
)
def test_fitting_estimators_are_those_that_a_config_may_name(objective, options, expected):
    config = settle(make_config(NOWHERE, objective__name=objective, **options))
    assert set(estimators.fitting(config)) == expected
    for name in OBJECTIVES:
        fits = True
        try:
            settle(
                dataclasses.replace(config, eval=dataclasses.replace(config.eval, estimator=name))
            )
        except UserError:
            fits = False
        assert fits == (name in expected), name


@pytest.mark.parametrize(
    ("objective", "options", "expected"),
    [
        ("radd_t_dce", {}, "radd_ao"),
        ("mdlm", {}, "radd_ao"),
        ("mdlm", {"objective__steps": 10}, "mdlm"),
        ("mdlm", {"model__time": "adaln"}, "mdlm"),
        ("sedd_absorb", {"model__time": "none"}, "sedd_absorb"),
        ("mlm", {}, "mlm_pseudo"),
    ],
)
def test_best_estimator_is_chosen_where_it_estimates_the_same(objective, options, expected):
    config = settle(make_config(NOWHERE, objective__name=objective, **options))
    assert estimators.choose(config).name == expected


def test_exact_estimator_takes_one_draw_without_error():
    config = settle(make_config(NOWHERE, objective__name="ar"))
    chosen = estimators.choose(config, draws=64)
    assert (chosen.draws, chosen.groups, chosen.levels) == (1, 1, "none")
