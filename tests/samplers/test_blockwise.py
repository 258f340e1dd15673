"""Blockwise sampling: what it refuses; the law of its samples is in test_laws.py."""

import numpy as np
import pytest

from ddm_jax.errors import UserError
from ddm_jax.samplers.blockwise import blockwise


@pytest.mark.parametrize("size", [0, 3])
def test_block_that_does_not_divide_the_length_is_refused(size):
    with pytest.raises(UserError, match="block_size"):
        blockwise(None, None, None, np.zeros((1, 4), int), *[None] * 3, block_size=size)
