"""Work directories made by hand: what a run of known numbers would have written."""

import dataclasses
import json

from configs.compare_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.settle import settle


def make_run(
    folder,
    objective="ar",
    layout="dp",
    seed=0,
    losses=(4.0, 2.0),
    nll=(3.0, 2.0),
    step_s=0.1,
    steps=None,
    fields=None,
    fingerprint="data",
):
    """A run that logged and validated every 10 steps; finished where steps is left out."""
    config = get_config()
    config.objective.name, config.layout.name, config.seed = objective, layout, seed
    config.train.steps = steps or 10 * len(nll)
    config.update_from_flattened_dict(fields or {})
    folder.mkdir(parents=True)
    record = {
        "config": dataclasses.asdict(settle(resolve(config))),
        "data": {
            "folder": str(folder / "nowhere"),
            "spec": {"source": "embedded"},
            "source_fingerprint": fingerprint,
            "tokenizer": {"name": "bytes", "fingerprint": "t"},
        },
        "versions": {"jax": "1"},
        "git_revision": "abc",
        "devices": ["cpu"] * 8,
    }
    (folder / "config.json").write_text(json.dumps(record))
    lines = []
    for i, loss in enumerate(losses):
        lines.append({"step": 10 * (i + 1), "loss": loss, "step_s": step_s, "tokens_per_s": 100})
        if i < len(nll):
            check = {"nll": nll[i], "stderr": 0.5, "ppl": 1.0, "bits_per_byte": nll[i] / 2}
            lines.append({"step": 10 * (i + 1), **check})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder
