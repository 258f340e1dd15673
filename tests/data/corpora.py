"""Small corpora for the data tests."""

import dataclasses
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddm_jax.data.sets.pairs import PairSpec
from ddm_jax.data.sets.text import PreparedText, TextSpec

WORDS = ("liberty", "états", "commerce", "naïve", "Москва", "peace", "日本", "treasury", "🎈")


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Distinct short texts, some with line breaks, of very different lengths."""
    rng = random.Random(seed)
    return [
        f"{number}:" + rng.choice([" ", "\n"]).join(rng.choices(WORDS, k=rng.randrange(1, 60)))
        for number in range(count)
    ]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def read_all(prepared: PreparedText, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and valid positions of all blocks of a split."""
    blocks = prepared.records(split)
    return blocks.read(range(len(blocks)))


def small(source: str, **changes: object) -> TextSpec:
    """Bytes in blocks of 32."""
    spec = TextSpec(source, "bytes", 32, "wrap", validation_fraction=0.1, test_fraction=0.1)
    return dataclasses.replace(spec, **changes)


def english(count: int = 400) -> list[str]:
    """Plain words, with enough different ones to train a tokenizer of 600 pieces."""
    rng = random.Random(1)
    words = ["".join(rng.choices("aeioubcdst", k=rng.randrange(2, 9))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=30)) for _ in range(count)]


def make_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of very different lengths; some sides are empty, some sources come several times."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randrange(most)))

    return [(text(24), text(48)) for _ in range(count - count // 8)] + [
        (rng.choice(WORDS), text(48)) for _ in range(count // 8)
    ]


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> str:
    """Writes a .jsonl of pairs; returns the `data.source` that names it."""
    rows = [{"source": source, "target": target} for source, target in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"pairs:{path}"


def pair_spec(source: str, **changes: object) -> PairSpec:
    """Of bytes; some of the pairs of `make_pairs` are too long for it."""
    spec = PairSpec(source, "", "", "bytes", 256, 128, validation_fraction=0.1, test_fraction=0.1)
    return dataclasses.replace(spec, **changes)


def rows_of(k: int, count: int) -> Callable[[int], range]:
    """The rows of process k of `count`."""
    return lambda size: range(k * size // count, (k + 1) * size // count)


def interrupt_after_a_shard() -> None:
    """For `before` of tests/commands.py: Ctrl-C comes when the first of many shards is written."""
    from ddm_jax.data.build import text
    from ddm_jax.data.sources import shards

    tokenise = text.tokenise

    def tokenise_and_interrupt(job, *args):
        tokenise(job, *args)
        if job.index == 0:
            print("a shard is written", file=sys.stderr)
            os.kill(os.getpid(), signal.SIGINT)

    text.tokenise = tokenise_and_interrupt
    shards.SHARD_BYTES = (1000, 1000)
