"""Writes scikit-learn's digits as two data sets: a seeded four fifths to train with, the rest to test with.

Needs scikit-learn and numpy: python3 -m venv v && v/bin/pip install scikit-learn
"""

import json
import struct
import sys
from pathlib import Path

import numpy
from sklearn.datasets import load_digits

SEED = 0
TRAIN = 1437


def write(path, inputs, labels):
    tensors = {"inputs": inputs, "labels": labels}
    header = {"__metadata__": {"scale": "0.0625", "source": "scikit-learn load_digits (UCI optical digits)"}}
    end = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "U8", "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def main(out):
    digits = load_digits()
    # Sixteen levels of grey; scaled to a share of one by the metadata.
    inputs = digits.data.astype(numpy.uint8)
    labels = digits.target.astype(numpy.uint8)
    chosen = numpy.random.default_rng(SEED).permutation(len(labels))
    out.mkdir(parents=True, exist_ok=True)
    write(out / "digits-train.safetensors", inputs[chosen[:TRAIN]], labels[chosen[:TRAIN]])
    write(out / "digits-test.safetensors", inputs[chosen[TRAIN:]], labels[chosen[TRAIN:]])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tests/data"))
