"""The picture of a run, as matplotlib has it before it becomes a file."""

import json

import pytest
from matplotlib.figure import Figure

from ddm_jax.recipes import make_config
from ddm_jax.settle import settle
from ddm_jax.training.curve import draw_curve

RECORDS = [{"step": 5, "loss": 40.0}, {"step": 9, "nll": 5.0, "stderr": 0.1}]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(recipe, overrides) -> (the figure of a run with RECORDS, its file)."""
    figures = []
    save = Figure.savefig

    def saved(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    def draw(recipe, overrides):
        config = settle(make_config(recipe, overrides))
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
        return draw_curve(tmp_path, 6.5, config), figures.pop()

    monkeypatch.setattr(Figure, "savefig", saved)
    return draw


@pytest.mark.parametrize(
    ("recipe", "overrides", "estimate"),
    [
        ("radd_tiny", {}, "an upper bound"),
        ("gidd_tiny", {"objective.weighting": "elbo"}, "an upper bound"),
        ("ar_tiny", {}, "exact"),
    ],
)
def test_loss_that_is_a_bound_shares_the_axis(drawn, recipe, overrides, estimate):
    path, figure = drawn(recipe, overrides)
    (axes,) = figure.axes
    assert axes.get_ylabel() == "nats per token"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "training loss",
        f"validation ({estimate})",
        "unigram model",
    ]
    assert 1000 < path.stat().st_size < 100_000


@pytest.mark.parametrize("recipe", ["rdm_tiny", "gidd_tiny", "mlm_tiny"])
def test_loss_of_other_units_has_its_own_axis(drawn, recipe):
    name = {"rdm_tiny": "rdm_absorb", "gidd_tiny": "gidd", "mlm_tiny": "mlm"}[recipe]
    _, figure = drawn(recipe, {})
    axes, loss_axes = figure.axes
    assert axes.get_ylabel() == "validation: nats per token"
    assert loss_axes.get_ylabel() == f"training loss ({name}): weighted nats per token"
    (loss,) = loss_axes.get_lines()
    assert loss.get_ydata() == [40.0]
    assert axes.get_ylim()[1] < 10  # the scale of the validation
