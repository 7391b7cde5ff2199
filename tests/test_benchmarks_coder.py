"""Does the coder's benchmark tell kernels from the rest?"""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from benchmarks.coder import ENTROPY, kernel_table
from pipeline.codec.entropy import Decoder, Encoder


def test_is_time_told_apart_by_kind_of_kernel() -> None:
    a = torch.ones(400, 400)
    places = torch.arange(1 << 20) % 160_000
    digits, weights = np.arange(200_000) % 8, np.ones((200_000, 8), np.float32)

    def run() -> None:
        encoder = Encoder()
        encoder.push(digits, weights)
        torch.mm(a, a)
        a.take(places)
        time.sleep(0.2)
        assert Decoder(encoder.to_bytes()).pull(weights).tolist() == digits.tolist()

    lines = {line["what"]: line for line in kernel_table(run)}
    assert list(lines) == ["matrix products", "table look-ups", ENTROPY, "other kernels of torch", "the rest"]
    assert sum(line["share"] for line in lines.values()) == pytest.approx(1)
    assert all(lines[what]["s"] > 0 for what in ("matrix products", "table look-ups", ENTROPY))
    assert lines["the rest"]["s"] >= 0.2
