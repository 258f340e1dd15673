"""Small corpora for the data tests."""

import json
import random
from pathlib import Path

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


def english(count: int = 400) -> list[str]:
    """Plain words, with enough different ones to train a tokenizer of 600 pieces."""
    rng = random.Random(1)
    words = ["".join(rng.choices("aeioubcdst", k=rng.randrange(2, 9))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=30)) for _ in range(count)]
