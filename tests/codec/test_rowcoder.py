"""Is a block measured whose rows have states that fitting did not see?"""

from __future__ import annotations

import numpy as np

from pipeline.codec.fit_rows import Effort, Symbol, fit_row_coder

TINY = Effort(hidden=8, steps=12, knots=4, direct=16)


def test_is_a_state_that_fitting_did_not_see_measured():
    rng = np.random.default_rng(0)
    state = rng.integers(0, 2, 500)
    bins = np.stack([state, np.where(state == 0, rng.integers(0, 9, 500), -1)], 1)
    bins[::9] = -1
    coder = fit_row_coder([bins], None, [Symbol(0, 3, False, state=True), Symbol(1, 9, True, gate=0)], 500, TINY)
    absent = np.stack([np.zeros(500, np.bool_), bins[:, 0] < 0], 1)
    streams = coder.encode(bins, absent, None)
    bits = coder.measure(bins, None)
    assert bits.sum() <= 8 * sum(map(len, streams.values())) <= bits.sum() + 64 * len(streams)
    found = np.full_like(bins, -2)
    found[absent] = -1
    coder.decode(streams, found, None)
    np.testing.assert_array_equal(found, bins)
