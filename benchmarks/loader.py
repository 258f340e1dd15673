"""Tokens per second of the loader, by number of worker processes.

    python -m benchmarks.loader [--json]

Blocks of 1024 GPT-2 tokens of the embedded corpus, batches of 64 (256 KiB of ids). `workers=0`
reads ahead in one thread of this process, so each number is for max(1, workers) cores.
"""

import json
import tempfile
import time
from pathlib import Path

from absl import app, logging

from ddm_jax import cli
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.loading.loader import train_iterator
from ddm_jax.data.sets.text import PreparedText, TextSpec

LENGTH = 1024
BATCH = 64
WARM_UP = 20
BATCHES = 400
WORKERS = (0, 1, 2)

_JSON = cli.define_json()


def tokens_per_second(prepared: PreparedText, workers: int) -> float:
    """Over `BATCHES` batches, without the start of the workers."""
    batches = train_iterator(prepared, batch_size=BATCH, seed=0, workers=workers)
    for _ in range(WARM_UP):
        next(batches)
    begin = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    seconds = time.perf_counter() - begin
    batches.close()
    return BATCHES * BATCH * LENGTH / seconds


def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare_text(TextSpec(length=LENGTH), Path(folder) / "set", progress=False)
        rates = {f"workers_{n}": tokens_per_second(prepared, n) for n in WORKERS}
    for name, rate in rates.items():
        print(f"{name}: {rate / 1e6:.1f} million tokens/s")
    if _JSON.value:
        print(json.dumps({"tokens_per_s": rates, "length": LENGTH, "batch_size": BATCH}))


if __name__ == "__main__":
    app.run(main)
