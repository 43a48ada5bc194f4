#!/usr/bin/env python3
"""Makes the batch that scripts/check-backends.sh trains on, and compares what two backends made of it.

    tensors.py batch FILE.safetensors
    tensors.py compare LIMIT THEIRS OURS [LOSSES LOSSES]

THEIRS and OURS are safetensors files. Losses are what `thawline step` prints, or {"losses": […]}. Prints one line, and exits
with 1 if losses or tensors are further apart than LIMIT, relative to THEIRS.
"""

import array
import json
import math
import struct
import sys

N, C, H, W = 6, 3, 13, 11
CLASSES = 10  # as assets/resnet_tiny_shapes.safetensors


def bits(i):
    """SplitMix64: the same values everywhere."""
    z = (i + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    z = (z ^ z >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return z ^ z >> 31


def batch(path):
    images = array.array("f", ((bits(i) >> 40) / (1 << 22) - 2 for i in range(N * C * H * W))).tobytes()
    labels = array.array("q", (bits(1 << 32 | i) % CLASSES for i in range(N))).tobytes()
    header = {
        "images": {"dtype": "F32", "shape": [N, C, H, W], "data_offsets": [0, len(images)]},
        "labels": {"dtype": "I64", "shape": [N], "data_offsets": [len(images), len(images) + len(labels)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + images + labels)


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + struct.unpack_from("<Q", data)[0]
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = array.array({"F32": "f", "I64": "q"}[entry["dtype"]])
            values.frombytes(data[start + begin : start + end])
            tensors[name] = values
    return tensors


def losses(path):
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.startswith("{")]
    return lines[0]["losses"] if "losses" in lines[0] else [line["loss"] for line in lines if "loss" in line]


def apart(theirs, ours):
    """‖ours − theirs‖ and ‖theirs‖, squared. What is no number is infinitely far away."""
    squares = math.fsum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
    return (squares if math.isfinite(squares) else math.inf), math.fsum(b * b for b in theirs)


def compare(limit, theirs, ours, *results):
    theirs, ours = read(theirs), read(ours)
    if theirs.keys() != ours.keys():
        sys.exit(f"the files hold different tensors: {sorted(theirs.keys() ^ ours.keys())}")
    pairs = {name: apart(theirs[name], ours[name]) for name in theirs}
    squares, norms = (math.fsum(column) for column in zip(*pairs.values()))
    distance = math.sqrt(squares / norms)
    worst = max(pairs, key=lambda name: pairs[name][0] / (pairs[name][1] or 1.0))
    found = f"tensors {distance:.1e}, at most {math.sqrt(pairs[worst][0] / (pairs[worst][1] or 1.0)):.1e} ({worst})"
    furthest = distance
    if results:
        pair = [losses(path) for path in results]
        if len(pair[0]) != len(pair[1]) or not pair[0]:
            sys.exit(f"{len(pair[0])} losses and {len(pair[1])}")
        loss = max(abs(b - a) / abs(a) for a, b in zip(*pair))
        found = f"losses {loss:.1e}, {found}"
        furthest = max(furthest, loss)
    print(found)
    if not furthest <= limit:
        sys.exit(1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["batch", path]:
            batch(path)
        case ["compare", limit, theirs, ours, *results] if len(results) in (0, 2):
            compare(float(limit), theirs, ours, *results)
        case _:
            sys.exit(__doc__)
