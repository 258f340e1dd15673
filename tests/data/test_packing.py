import numpy as np
import pytest

from ddm_jax.data.build.packing import block_ranges, pad, read_range, wrap

EOS = 99


@pytest.fixture
def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 99, n, np.int32) for n in (5, 0, 1, 17, 8, 7, 9)]


def test_wrap_puts_eos_after_every_document(documents: list[np.ndarray]):
    packed = wrap(documents, EOS, 8)
    assert packed.stream.tolist() == [i for d in documents for i in [*d.tolist(), EOS]]
    assert packed.valid is None


def test_pad_cuts_or_fills_every_document(documents: list[np.ndarray]):
    packed = pad(documents, EOS, 8)
    rows = packed.stream.reshape(-1, 8)
    for document, row, valid in zip(documents, rows, packed.valid, strict=True):
        expected = [*document.tolist(), EOS][:8]
        assert row[:valid].tolist() == expected
        assert (row[valid:] == EOS).all()
    assert packed.valid.tolist() == [6, 1, 2, 8, 8, 8, 8]


def test_stretch_is_a_slice_of_the_concatenation():
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 9, n) for n in (3, 1, 8, 2)]
    whole = np.concatenate(pieces)
    starts = np.cumsum([0, 3, 1, 8])
    for begin in range(len(whole)):
        for end in range(begin + 1, len(whole) + 1):
            np.testing.assert_array_equal(
                read_range(pieces.__getitem__, starts, begin, end), whole[begin:end]
            )


@pytest.mark.parametrize("blocks", [0, 1, 9, 10, 11])
def test_block_ranges_cover_every_block_once(blocks: int):
    covered = [b for start, stop in block_ranges(blocks, 5) for b in range(start, stop)]
    assert covered == list(range(blocks))
