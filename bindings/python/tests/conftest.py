import os
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
