"""The order of training: an endless shuffled sequence with random access, decided by a name."""

import hashlib

import grain


def shuffled(count: int, name: str) -> grain.MapDataset[int]:
    """Returns numbers in [0, count): each epoch of `count` entries is a new permutation."""
    # Grain shuffles epoch e with seed + e: with hashed names, neighbouring seeds share no epoch.
    digest = hashlib.sha256(name.encode()).digest()
    return grain.MapDataset.range(count).shuffle(seed=int.from_bytes(digest[:4], "big"))
