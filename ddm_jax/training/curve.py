"""A picture of a run: training loss and validation bound over steps."""

from pathlib import Path

from ddm_jax.runs.files import read_metrics

CURVE = "curve.png"


def draw_curve(workdir: Path, unigram: float) -> Path | None:
    """Draws workdir/curve.png from metrics.jsonl.

    Args:
      workdir: the folder of a run.
      unigram: cross entropy of a unigram model, nats per token; drawn as a line, since any trained
        network must be below it.

    Returns:
      The path of the picture; None if no training loss has been logged yet.
    """
    from matplotlib.figure import Figure  # slow to import

    records = read_metrics(workdir / "metrics.jsonl")
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [(r["step"], r["nll"], r["stderr"]) for r in records if "nll" in r]
    if not train:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*train, strict=True), color="0.6", linewidth=1, label="training loss")
    if held_out:
        steps, nll, stderr = zip(*held_out, strict=True)
        axes.errorbar(steps, nll, stderr, color="black", marker="o", label="validation bound")
    axes.axhline(unigram, color="0.3", linestyle=":", label="unigram model")
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend()
    path = workdir / CURVE
    figure.savefig(path, dpi=120)
    return path
