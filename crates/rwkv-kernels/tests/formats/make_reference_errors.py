"""Writes reference_errors.txt: the squared errors of ggml's own encoders on the data that `data.rs` makes too.

    gcc -O2 -shared -fPIC -I ggml/src -I ggml/include ggml/src/ggml-quants.c -o libggmlquants.so -lm \\
        -Wl,--defsym=ggml_abort=0,--defsym=ggml_row_size=0,--defsym=ggml_type_name=0,--defsym=ggml_type_size=0
    python make_reference_errors.py libggmlquants.so [demo.safetensors]

where `ggml` is that of llama.cpp (that of the sdist llama_cpp_python 0.3.36 was used); what its other files define is
not called. Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F16 and BF16 are encoded by the package gguf (PyPI, with numpy); the K types by
`quantize_row_*_K_ref` and IQ4_NL by `quantize_iq4_nl` of that library, with no importance matrix; all are expanded by
the package gguf. With a checkpoint it also renews rows.f16: 4096 values each of the matrices that MATRICES names, in
f16.
"""

import ctypes
import json
import pathlib
import struct
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

VALUES = 8192
MATRICES = [
    "emb.weight",
    "blocks.0.att.receptance.weight",
    "blocks.2.att.key.weight",
    "blocks.3.att.value.weight",
    "blocks.5.att.output.weight",
    "blocks.4.ffn.key.weight",
    "blocks.7.ffn.value.weight",
    "head.weight",
]
PYTHON = [T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0]
C = {
    T.Q2_K: "quantize_row_q2_K_ref",
    T.Q3_K: "quantize_row_q3_K_ref",
    T.Q4_K: "quantize_row_q4_K_ref",
    T.Q5_K: "quantize_row_q5_K_ref",
    T.Q6_K: "quantize_row_q6_K_ref",
    T.IQ4_NL: "quantize_iq4_nl",
}

folder = pathlib.Path(__file__).parent


def uniform(seed, n):
    """`n` numbers in 0 … 1 by splitmix64 from `seed`."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def gaussian(seed):
    """Close to normal: sums of 12 uniform numbers."""
    return uniform(seed, 12 * VALUES).reshape(VALUES, 12).sum(axis=1) - 6.0


def laplace(seed):
    u = uniform(seed, 2 * VALUES).reshape(VALUES, 2)
    return np.where(u[:, 1] < 0.5, -1.0, 1.0) * np.log(1.0 - u[:, 0])


def synthetic():
    chance = uniform(100, VALUES)
    yield "gaussian", 0.05 * gaussian(1)
    yield "laplace", 0.05 * laplace(2)
    yield "uniform", 0.2 * uniform(3, VALUES) - 0.1
    yield "sparse", np.where(chance < 0.9, 0.0, 0.05 * gaussian(4))
    yield "outliers", np.where(chance < 0.99, 0.02, 0.6) * gaussian(5)
    yield "constant", np.repeat(0.1 * gaussian(6)[: VALUES // 256], 256)
    yield "zeros", np.zeros(VALUES)
    yield "tiny", 1e-6 * gaussian(7)
    yield "large", 1e4 * gaussian(8)
    yield "offset", 5.0 + uniform(9, VALUES)
    yield "negative", -np.abs(0.05 * gaussian(10))


def rows(checkpoint):
    """The first rows of each matrix from its middle on."""
    raw = pathlib.Path(checkpoint).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    for name in MATRICES:
        assert header[name]["dtype"] == "F16"
        first, last = header[name]["data_offsets"]
        values = np.frombuffer(raw[8 + size + first : 8 + size + last], "<f2")
        yield values[values.size // 2 :][:4096]


def encode(library, kind, x):
    if kind in PYTHON:
        return gguf.quants.quantize(x.reshape(1, -1), kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros(x.size // elements * size, np.uint8)
    function = getattr(library, C[kind])
    source, target = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    n = ctypes.c_int64(x.size)
    if kind == T.IQ4_NL:
        function(source, target, ctypes.c_int64(1), n, None)
    else:
        function(source, target, n)
    return out.reshape(1, -1)


if len(sys.argv) > 2:
    np.concatenate(list(rows(sys.argv[2]))).tofile(folder / "rows.f16")
library = ctypes.CDLL(sys.argv[1])
sets = list(synthetic())
real = np.fromfile(folder / "rows.f16", "<f2").reshape(len(MATRICES), -1)
sets += list(zip(MATRICES, real))
with open(folder / "reference_errors.txt", "w") as out:
    print("# data, format, sum of squared errors: written by make_reference_errors.py", file=out)
    for name, x in sets:
        x = np.ascontiguousarray(x, dtype=np.float32)
        for kind in PYTHON + list(C):
            y = gguf.quants.dequantize(encode(library, kind, x), kind).reshape(-1)
            error = ((x.astype(np.float64) - y.astype(np.float64)) ** 2).sum()
            print(name, kind.name, f"{error:.6e}", file=out)
