"""Writes golden/NAME.blocks and golden/NAME.values: a few random blocks of each ggml type, and the f32 values (little
endian) that the package gguf (PyPI, with numpy) expands them to. Scales are f16 in every class but NaN and infinity:
zeros of both signs, subnormals, the largest. Run it in this folder: python make_golden.py
"""

import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

BLOCKS = 12
# The bytes at which a block holds an f16.
HALVES = {
    T.F16: [0],
    T.BF16: [],
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q8_0: [0],
    T.Q2_K: [80, 82],
    T.Q3_K: [108],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
    T.IQ4_NL: [0],
}
SPECIAL = np.array([0.0, -0.0, 6e-8, -6e-8, 5e-5, -1.0, 65504.0, -65504.0], np.float16)

folder = pathlib.Path(__file__).parent / "golden"
folder.mkdir(exist_ok=True)
rng = np.random.default_rng(20240607)
for kind, halves in HALVES.items():
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = BLOCKS if elements > 1 else 256
    data = rng.integers(0, 256, (blocks, size), np.uint8)
    # Codes at either end, zeros of scales and minima among them.
    data[1], data[2] = 0, 255
    for part, at in enumerate(halves):
        scales = rng.standard_normal(blocks).astype(np.float16)
        chosen = SPECIAL[rng.permutation(len(SPECIAL))] if part else SPECIAL
        # Blocks 1 and 2 keep ordinary scales.
        scales[3 : 3 + len(chosen)] = chosen
        data[:, at : at + 2] = scales.view(np.uint8).reshape(blocks, 2)
    if kind == T.BF16:
        data[:, 1] &= 0xBF  # no exponent of all ones
    values = gguf.quants.dequantize(data.reshape(1, -1), kind).astype("<f4").reshape(-1)
    assert values.size == blocks * elements and np.isfinite(values).all(), kind
    name = kind.name.lower()
    (folder / f"{name}.blocks").write_bytes(data.tobytes())
    (folder / f"{name}.values").write_bytes(values.tobytes())
    print(name, data.size, values.nbytes)
