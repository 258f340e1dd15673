"""A picture of a run: training loss and validation bound over steps."""

from pathlib import Path
from typing import Any

from ddm_jax.config import Config
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.runs.files import read_metrics
from ddm_jax.settle import option_values

CURVE = "curve.png"


def draw_curve(workdir: Path, unigram: float, config: Config) -> Path | None:
    """Draws workdir/curve.png from metrics.jsonl.

    A training loss that weighs tokens differently than the validation has an axis of its own.

    Args:
      workdir: the folder of a run.
      unigram: cross entropy of a unigram model, nats per token; drawn as a line, since any trained
        network must be below it.
      config: settled.

    Returns:
      The path of the picture; None if no training loss has been logged yet.
    """
    from matplotlib.figure import Figure  # slow to import

    records = read_metrics(workdir / "metrics.jsonl")
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [(r["step"], r["nll"], r["stderr"]) for r in records if "nll" in r]
    if not train:
        return None
    objective = OBJECTIVES[config.objective.name]
    same = objective.loss_is_bound(option_values(objective.options, config.objective))
    estimates = OBJECTIVES[config.eval.estimator].estimates or ""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    loss_axes = axes if same else axes.twinx()
    (loss,) = loss_axes.plot(*zip(*train, strict=True), color="0.6", lw=1, label="training loss")
    lines: list[Any] = [loss]
    if held_out:
        steps, nll, stderr = zip(*held_out, strict=True)
        label = f"validation ({estimates.split(',')[0]})"
        lines.append(axes.errorbar(steps, nll, stderr, color="black", marker="o", label=label))
    lines.append(axes.axhline(unigram, color="0.3", linestyle=":", label="unigram model"))
    axes.set(xlabel="step", ylabel="nats per token")
    if not same:
        axes.set_ylabel("validation: nats per token")
        name = config.objective.name
        loss_axes.set_ylabel(f"training loss ({name}): weighted nats per token", color="0.4")
        loss_axes.tick_params(axis="y", colors="0.4")
        axes.set_zorder(1)  # the validation is drawn over the loss
        axes.patch.set_visible(False)
    axes.legend(handles=lines, loc="upper right")
    path = workdir / CURVE
    figure.savefig(path, dpi=120)
    return path
