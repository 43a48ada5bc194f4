import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

# Before Keras is imported. Any backend writes the same files.
os.environ.setdefault("KERAS_BACKEND", "torch")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def weights():
    """A small pretrained network for images of 16 pixels."""
    return ROOT / "assets/resnet_tiny_shapes.safetensors"


@pytest.fixture
def batch(random):
    """Eight images of 16 pixels, normalised, and their labels of four classes."""
    return random.standard_normal((8, 3, 16, 16), np.float32), np.arange(8) % 4


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with 16 small pictures of each of two classes, which differ in brightness."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(1)
    for name, least in (("bright", 120), ("dark", 0)):
        (folder / name).mkdir()
        for index in range(16):
            write_png(folder / name / f"{index}.png", random.integers(least, least + 100, (16, 16, 3), np.uint8))
    return folder


def write_png(path, pixels):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
