"""D3PM on two CPU cores in a few minutes: the radd_tiny run with D3PM's losses and processes.

Every value is ours. config argument: process=absorbing|uniform|gaussian|nearest, loss=vb|hybrid|ce.
The Gaussian moves tokens to ids nearby, so that it reads bytes, whose order means a little (case,
digits, punctuation). Nearest neighbours want --config.process.embedding=TABLE.npy, and
docs/objectives.md shows how to make one from the training text.
"""

from ml_collections import ConfigDict

from configs.radd_tiny import get_config as radd_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(
        arg,
        process=("absorbing", "uniform", "gaussian", "nearest"),
        loss=("vb", "hybrid", "ce"),
    )
    config = radd_tiny()
    config.objective.name = "d3pm_ce" if chosen["loss"] == "ce" else "d3pm"
    if chosen["loss"] == "hybrid":
        config.objective.ce_weight = 0.5
    config.process.name = f"d3pm_{chosen['process']}"
    config.process.steps = 200
    if chosen["process"] == "gaussian":
        config.data.tokenizer = "bytes"
        config.data.length = 128
        config.schedule.name = "d3pm_cosine"  # 100 of the paper's linear steps do not mix
        # a large share of L_vb lies in its first terms: the bound sums all of them, as D3PM does
        config.process.steps = 100
        config.eval.draws = 100
        config.eval.sequences = 16
    return config
