"""The damage that shipped: 18 wrong values in a released OPT-175B shard (metaseq #122).

    python examples/shipped_damage.py opt.safetensors
    weightguard audit opt.safetensors

Writes a float16 tensor of ordinary weights with the published values in it, contiguous, as they
were found in an fc1 weight.
"""

import json
import sys
from pathlib import Path

import numpy as np

VALUES = [
    5.2691e-05, 4500, 1.6427e-04, 5508, 52256, 6588, 30224, 5.2631e-05, 7564, 6.4969e-06,
    1.5259e-05, 1.5259e-05, 0, 5.0783e-04, 0, -0.0, 0, -4.8828e-03,
]  # fmt: skip
SHAPE = (2048, 1024)
NAME = "decoder.layers.3.fc1.weight"


def write(path: Path) -> None:
    """Write the damaged tensor as a safetensors file."""
    weights = np.random.default_rng(0).standard_normal(SHAPE) * 0.02
    fc1 = weights.astype("<f2")
    fc1.reshape(-1)[1_234_000:1_234_018] = VALUES
    entry = {"dtype": "F16", "shape": SHAPE, "data_offsets": [0, fc1.nbytes]}
    header = json.dumps({NAME: entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + fc1.tobytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
