"""Writes torch.pth as torch.save would, with Python's own pickle and zipfile: PyTorch itself is not needed.

    python3 make_pth.py

Classes and functions of the names that torch.save puts into pickles stand in for PyTorch's. The tensors hold 0, 1, 2, …
in the order of their storage.
"""

import collections
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

MODULES = ["torch", "torch._utils", "torch._tensor", "torch.nn", "torch.nn.parameter"]
for name in MODULES:
    sys.modules[name] = types.ModuleType(name)
torch = sys.modules["torch"]


def stand_in(module, name, base=object):
    """A class that pickle writes as `module.name`."""
    made = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


def function(module, name):
    """A function that pickle writes as `module.name`."""

    def made(*_):
        raise NotImplementedError

    made.__module__, made.__name__, made.__qualname__ = module, name, name
    setattr(sys.modules[module], name, made)
    return made


STORAGES = {
    "float32": stand_in("torch", "FloatStorage"),
    "float16": stand_in("torch", "HalfStorage"),
    "float64": stand_in("torch", "DoubleStorage"),
    "int64": stand_in("torch", "LongStorage"),
}
Tensor = stand_in("torch", "Tensor")
Parameter = stand_in("torch.nn.parameter", "Parameter")
rebuild_tensor = function("torch._utils", "_rebuild_tensor_v2")
rebuild_parameter = function("torch._utils", "_rebuild_parameter")
rebuild_from_type = function("torch._tensor", "_rebuild_from_type_v2")


class Size(tuple):
    def __reduce__(self):
        return (Size, (tuple(self),))


Size.__module__ = "torch"
torch.Size = Size


class Storage:
    def __init__(self, key, kind, count):
        self.key, self.values = key, np.arange(count, dtype=kind)


class Strided:
    """A tensor; `wrap` says as what it is saved."""

    def __init__(self, storage, first, size, stride, wrap=None):
        self.args = (storage, first, tuple(size), tuple(stride), False, collections.OrderedDict())
        self.wrap = wrap

    def __reduce__(self):
        if self.wrap == "from_type":
            return (rebuild_from_type, (rebuild_tensor, Tensor, self.args, {}))
        if self.wrap == "parameter":
            return (rebuild_parameter, (Strided(*self.args[:4]), True, collections.OrderedDict()))
        return (rebuild_tensor, self.args)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", STORAGES[value.values.dtype.name], value.key, "cpu", value.values.size)
        return None


def main():
    storages = [
        Storage("0", "float32", 24),
        Storage("1", "float16", 6),
        Storage("2", "float64", 3),
        Storage("3", "int64", 2),
        Storage("4", "float32", 1),
    ]
    f32, f16, f64, i64, one = storages
    tensors = collections.OrderedDict(
        [
            ("plain", Strided(f32, 0, [2, 3, 4], [12, 4, 1])),
            ("rows", Strided(f32, 4, [2, 4], [4, 1])),
            ("transposed", Strided(f16, 0, [3, 2], [1, 3])),
            ("every_third", Strided(f32, 1, [4], [3])),
            ("_forward_module.prefixed", Strided(f64, 0, [3], [1], "from_type")),
            ("parameter", Strided(i64, 0, [1, 1, 2], [7, 9, 1], "parameter")),
            ("scalar", Strided(one, 0, [], [])),
            ("empty", Strided(one, 0, [0, 5], [5, 1])),
        ]
    )
    tensors._metadata = collections.OrderedDict([("", {"version": 1}), ("att", {"version": 1})])
    whole = {
        "state_dict": tensors,
        "epoch": 12,
        "tokens": 3_000_000_000_000,
        "loss": 1.5,
        "done": True,
        "author": "Zoë",
        "nothing": None,
        "shape": Size([2, 3]),
        "betas": [0.9, 0.99, (1, 2)],
    }
    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump(whole)

    path = Path(__file__).with_name("torch.pth")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(name, content, zip64=False):
            entry = zipfile.ZipInfo(f"rwkv-x070/{name}")
            with archive.open(entry, "w", force_zip64=zip64) as file:
                file.write(content)

        write("data.pkl", pickled.getvalue())
        write("byteorder", b"little")
        for storage in storages:
            write(f"data/{storage.key}", storage.values.tobytes(), zip64=True)
        write("version", b"3\n")
        write(".data/serialization_id", b"0123")


if __name__ == "__main__":
    main()
