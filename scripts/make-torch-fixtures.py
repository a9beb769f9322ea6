#!/usr/bin/python3
"""Makes the torch files under tests/data/torch, once, with a real torch (written with Debian's python3-torch 1.13).

    scripts/make-torch-fixtures.py [FOLDER]

What each must be read as stands beside it as NAME.safetensors. The files are checked in and never edited: tests need
neither Python nor torch. Types newer than torch 1.13 (float8, uint16) are pickled by hand as later versions do.
"""

import argparse
import collections
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import torch

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..", "tests", "data", "torch")
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64",
}


def content(tensor):
    """The elements in order, as bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    if tensor.dtype == torch.bfloat16:
        flat = flat.view(torch.int16)
    return flat.numpy().tobytes()


def expect(name, entries):
    """Writes what a reader must find: (name, dtype, shape, bytes) in order."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, dtype, shape, data in entries:
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(OUT, name + ".safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in entries))


def expect_tensors(name, tensors):
    expect(name, [(key, NAMES[t.dtype], t.shape, content(t)) for key, t in tensors.items()])


def save(name, value, **options):
    torch.save(value, os.path.join(OUT, name), **options)


def floats(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def twenty():
    base = floats(6, 8, seed=1)
    half = floats(5, 7, dtype=torch.bfloat16, seed=2)
    tied = floats(4, 3, seed=3)
    return collections.OrderedDict([
        ("bf16", half),
        ("f16", floats(3, 5, dtype=torch.float16, seed=4)),
        ("f32", base),
        ("f64", floats(2, 2, 2, dtype=torch.float64, seed=5)),
        ("i64", torch.arange(-3, 4)),
        ("i32", torch.arange(5, dtype=torch.int32) - 2),
        ("i16", torch.arange(6, dtype=torch.int16) * -300),
        ("i8", torch.arange(-4, 3, dtype=torch.int8)),
        ("u8", torch.arange(250, 256, dtype=torch.uint8)),
        ("bool", torch.tensor([True, False, True])),
        ("embed.weight", tied),
        ("head.weight", tied),
        ("transposed", base.t()),
        ("slice", base[1:4, 2:5]),
        ("rows", base[2:4]),
        ("step", base[::2, ::3]),
        ("expanded", half[0, :1].expand(4, 3)),
        ("permuted", floats(2, 3, 4, dtype=torch.float16, seed=6).permute(2, 0, 1)),
        ("scalar", torch.tensor(2.5)),
        ("empty", torch.empty(0, 3)),
    ])


def plain_files():
    tensors = twenty()
    save("dict.pt", tensors)
    save("legacy.pt", tensors, _use_new_zipfile_serialization=False)
    save("protocol4.pt", dict(tensors), pickle_protocol=4)
    save("legacy-protocol5.pt", dict(tensors), pickle_protocol=5, _use_new_zipfile_serialization=False)
    expect_tensors("dict", tensors)
    with zipfile.ZipFile(os.path.join(OUT, "dict.pt")) as old:
        with zipfile.ZipFile(os.path.join(OUT, "deflated.pt"), "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.namelist():
                stamp = zipfile.ZipInfo("a folder" + member[member.index("/"):])
                new.writestr(stamp, old.read(member), zipfile.ZIP_DEFLATED)


def parameters():
    weight = torch.nn.Parameter(floats(3, 4, seed=7))
    marked = torch.nn.Parameter(floats(2, seed=8), requires_grad=False)
    marked.note = "a tensor with attributes"
    tensors = collections.OrderedDict([("weight", weight), ("marked", marked), ("count", torch.tensor(7))])
    save("parameters.pt", tensors)
    expect_tensors("parameters", tensors)


def net():
    torch.manual_seed(9)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.ReLU()))


def nested():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    model.eval()
    checkpoint = {
        "epoch": 3, "loss": 0.25, "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
        "rng_state": torch.zeros(4, dtype=torch.uint8),
    }
    save("nested.pt", checkpoint)
    save("nested-legacy.pt", checkpoint, _use_new_zipfile_serialization=False)
    expect_tensors("nested", model.state_dict())
    save("two.pt", {"state_dict": {"w": floats(2, seed=10)}, "ema": {"w": floats(2, seed=11)}})


def whole_module():
    faraway = types.ModuleType("faraway")
    faraway.Net = type("Net", (torch.nn.Sequential,), {"__module__": "faraway"})
    sys.modules["faraway"] = faraway
    model = faraway.Net(*net())
    save("module.pt", model)
    expect_tensors("module", model.state_dict())
    faraway.Scale = type("Scale", (), {"__module__": "faraway"})
    scale = faraway.Scale()
    scale.value = 3
    save("opaque-value.pt", {"w": floats(2, seed=12), "scale": scale})
    save("opaque-beside.pt", {"model": {"w": floats(2, seed=12)}, "settings": scale})
    expect_tensors("opaque-beside", {"w": floats(2, seed=12)})


class Payload:
    def __reduce__(self):
        return os.system, ("touch thalweg-was-here",)


def refused():
    save("hostile.pt", {"w": floats(2, seed=13), "x": Payload()})
    save("hostile-legacy.pt", {"w": floats(2, seed=13), "x": Payload()}, _use_new_zipfile_serialization=False)
    save("quantized.pt", {"q": torch.quantize_per_tensor(floats(4, seed=14), 0.1, 0, torch.qint8)})
    save("sparse.pt", {"s": floats(3, 3, seed=15).to_sparse()})
    save("complex128.pt", {"c": torch.ones(2, dtype=torch.complex128)})
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), os.path.join(OUT, "script.pt"))


def complex_numbers():
    tensors = {"c": torch.complex(floats(2, 3, seed=16), floats(2, 3, seed=17)).t()}
    save("complex.pt", tensors)
    expect_tensors("complex", tensors)


def newer_types():
    """What torch 2.4 and later write: `_rebuild_tensor_v3` on untyped storages, and members of the archive."""
    rebuild = types.FunctionType((lambda *args: None).__code__, {}, "_rebuild_tensor_v3")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v3"
    torch._utils._rebuild_tensor_v3 = rebuild

    class Dtype:
        def __init__(self, name):
            self.name = name

        def __reduce__(self):
            return self.name

    class Storage:
        def __init__(self, key, data):
            self.key, self.data = key, data

    class Tensor:
        def __init__(self, *args):
            self.args = args

        def __reduce__(self):
            return rebuild, self.args

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.storage.UntypedStorage, value.key, "cpu", len(value.data))
            return None

        def save_global(self, value, name=None):
            if isinstance(value, Dtype):
                self.write(b"ctorch\n" + name.encode() + b"\n")
                self.memoize(value)
            else:
                super().save_global(value, name)

    wanted = [("fp8", "float8_e4m3fn", "F8_E4M3", 1), ("fp8b", "float8_e5m2", "F8_E5M2", 1),
              ("u16", "uint16", "U16", 2), ("u32", "uint32", "U32", 4), ("u64", "uint64", "U64", 8)]
    storages, tensors, entries = [], collections.OrderedDict(), []
    for place, (key, name, short, width) in enumerate(wanted):
        data = bytes((7 * place + 11 * byte) % 251 for byte in range(6 * width))
        storages.append(Storage(str(place), data))
        no_hooks = collections.OrderedDict()
        tensors[key] = Tensor(storages[-1], 1, (1, 3), (3, 1), False, no_hooks, Dtype(name))
        entries.append((key, short, (1, 3), data[width:4 * width]))
    pickled = io.BytesIO()
    Pickler(pickled, 2).dump(tensors)
    with zipfile.ZipFile(os.path.join(OUT, "newer.pt"), "w") as archive:
        members = [("data.pkl", pickled.getvalue()), (".format_version", b"1"), (".storage_alignment", b"64"),
                   ("byteorder", b"little")]
        members += [("data/" + storage.key, storage.data) for storage in storages]
        members += [("version", b"3\n"), (".data/serialization_id", b"0" * 40)]
        for name, data in members:
            archive.writestr(zipfile.ZipInfo("newer/" + name), data)
    expect("newer", entries)


if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    for make in (plain_files, parameters, nested, whole_module, refused, complex_numbers, newer_types):
        make()
