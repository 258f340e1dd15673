"""The law of sequences that are filled one position at a time, by enumeration."""

import numpy as np

from tests.enumerable import all_sequences


def law_of_order(p: np.ndarray, order: list[int], start: list[int]) -> np.ndarray:
    """prod_i p(x_i | what came before it in the order): float64[V^L].

    p: a network's answers, [(V + 1)^L, L, V]. start: tokens to begin with, V for a mask; what is no
    mask is passed over.
    """
    vocab, length = p.shape[-1], p.shape[-2]
    x = all_sequences(vocab, length)
    digits = (vocab + 1) ** np.arange(length)[::-1]
    state = np.broadcast_to(start, x.shape).copy()
    law = ((state == vocab) | (state == x)).all(1).astype(float)
    for i in order:
        if start[i] == vocab:
            law *= p[state @ digits, i, x[:, i]]
            state[:, i] = x[:, i]
    np.testing.assert_allclose(law.sum(), 1)
    return law
