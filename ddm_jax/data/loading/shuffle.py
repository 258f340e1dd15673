"""The order of training: a function of a name, endless, with random access."""

import hashlib

import grain


def shuffled(count: int, name: str) -> grain.MapDataset[int]:
    """Entry p is a number in [0, count); each epoch of `count` entries is shuffled anew."""
    # Grain shuffles epoch e with seed + e: hashed, neighbouring seeds share no epoch.
    digest = hashlib.sha256(name.encode()).digest()
    return grain.MapDataset.range(count).shuffle(seed=int.from_bytes(digest[:4], "big"))
