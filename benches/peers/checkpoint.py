"""Reads safetensors with numpy alone: the safetensors package has no bf16 for numpy."""

import json
from pathlib import Path

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}


def read(path):
    """Yields (name, array) of one file; the arrays are mapped, bf16 becomes f32."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            array = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            array = raw.view(DTYPES[entry["dtype"]])
        yield name, array.reshape(entry["shape"])


def weights(folder):
    """Yields (name, array) of every weight of a Hugging Face folder, sharded or not."""
    for path in sorted(Path(folder).glob("model*.safetensors")):
        yield from read(path)
