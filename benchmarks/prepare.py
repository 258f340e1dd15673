"""Speed of preparing data, from text files to a finished set on disk.

    python -m benchmarks.prepare [--json]

GPT-2 BPE over the embedded corpus four times (49 MB) as a text source, once with one thread and
once with all cores. Rates are given per second of wall time and per second of processor time, which
is the rate of one core that is not shared.
"""

import json
import os
import tempfile
import time
from pathlib import Path

from absl import app, logging

from ddm_jax import cli
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.sets.text import TextSpec
from ddm_jax.data.sources import registry as sources

COPIES = 4

_JSON = cli.define_json()


def write_corpus(folder: Path) -> int:
    """Writes the text files; returns their size in bytes."""
    shards = sources.open_source("embedded").shards["train"]
    texts = [text for shard in shards for text in shard.read()]
    for copy in range(COPIES):
        for number, text in enumerate(texts):
            # Each copy differs, because equal documents would all fall into one split.
            (folder / f"{copy}-{number:03d}.txt").write_text(f"Copy {copy}.\n{text}", "utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


def megabytes_per_second(source: str, size: int, out: Path, workers: int) -> tuple[float, float]:
    """MB of text per second of wall time and of processor time, from end to end."""
    wall, cpu = time.perf_counter(), time.process_time()
    prepare_text(TextSpec(source=source, tokenizer="gpt2"), out, workers=workers, progress=False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return size / 1e6 / wall, size / 1e6 / cpu


def main(argv: list[str]) -> None:
    """Runs the command line."""
    del argv
    logging.set_verbosity(logging.WARNING)
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text").mkdir()
        size = write_corpus(folder / "text")
        source = f"text:{folder}/text/*.txt"
        one, one_cpu = megabytes_per_second(source, size, folder / "one", 1)
        all_cores, all_cpu = megabytes_per_second(source, size, folder / "all", cores)
    print(f"1 thread: {one:.1f} MB/s ({one_cpu:.1f} per core-second)")
    print(f"{cores} threads: {all_cores:.1f} MB/s ({all_cpu:.1f} per core-second)")
    if _JSON.value:
        record = {
            "mb_per_s_one_thread": one,
            "mb_per_s_all_cores": all_cores,
            "mb_per_core_s_one_thread": one_cpu,
            "mb_per_core_s_all_cores": all_cpu,
            "cores": cores,
            "text_mb": size / 1e6,
        }
        print(json.dumps(record))


if __name__ == "__main__":
    app.run(main)
