"""Writes Fashion-MNIST, as Debian packages it, as two data sets. Python's own library is all it needs.

    python3 scripts/research/fashion-mnist.py FOLDER_WITH_IDX_FILES OUT
"""

import gzip
import json
import struct
import sys
from pathlib import Path

PARTS = {"train": "train", "test": "t10k"}


def idx(path):
    """Shape and bytes of an IDX file of unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    kind, rank = data[2], data[3]
    if data[:2] != b"\0\0" or kind != 8:
        sys.exit(f"{path} is no IDX file of bytes")
    shape = struct.unpack(f">{rank}I", data[4:4 + 4 * rank])
    return list(shape), data[4 + 4 * rank:]


def write(path, tensors):
    header, end = {"__metadata__": {"mean": "0.5", "std": "0.5", "source": "Fashion-MNIST (Zalando, MIT)"}}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))


def main(source, out):
    out.mkdir(parents=True, exist_ok=True)
    for part, name in PARTS.items():
        images = idx(source / f"{name}-images-idx3-ubyte.gz")
        labels = idx(source / f"{name}-labels-idx1-ubyte.gz")
        write(out / f"fashion-{part}.safetensors", {"inputs": images, "labels": labels})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
