"""To and from Keras, on its own objects."""

import gc

import numpy as np
import pytest

import thawline
from thawline import Model, Session

keras = pytest.importorskip("keras", reason="Keras is not installed")


@pytest.fixture
def net():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax", name="classes"),
        ]
    )


@pytest.fixture
def pixels(random):
    return random.integers(0, 256, (8, 16, 16, 3), np.uint8)


def test_predictions_are_keras(net, pixels):
    model = thawline.from_keras(net)
    assert model.classes == 4 and model.size == (16, 16)
    assert [layer["name"] for layer in model.layers() if layer["parameters"]] == ["conv", "norm", "classes"]
    expected = net.predict(pixels.astype(np.float32), verbose=0)
    np.testing.assert_allclose(model.predict(pixels), expected, rtol=1e-4, atol=1e-5)


def test_trained_weights_go_back(net, pixels, tmp_path):
    model = thawline.from_keras(net)
    session = Session(model, "full", batch=8, lr=0.1)
    for _ in range(3):
        session.step(pixels, np.arange(8) % 4)
    tuned = session.model()
    expected = tuned.predict(pixels)
    assert np.abs(expected - model.predict(pixels)).max() > 1e-3
    # What a file is copied from is kept as long as anything needs it.
    del model, session
    gc.collect()
    tuned.save(tmp_path / "tuned.keras")
    tuned.load_into(net)
    for target in [net, keras.models.load_model(tmp_path / "tuned.keras")]:
        found = target.predict(pixels.astype(np.float32), verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Model.open(tmp_path / "tuned.keras").predict(pixels), expected, rtol=1e-5, atol=1e-6)


def test_a_network_that_is_not_the_models_is_refused(net):
    with pytest.raises(thawline.WeightsError, match="cannot write a copy"):
        Model.new("resnet_tiny").load_into(net)


def test_a_keras_model_is_no_torch_module(net):
    with pytest.raises(TypeError, match="from_keras"):
        thawline.from_torch(net)


def test_what_cannot_be_read_is_named():
    layers = keras.layers
    net = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2DTranspose(4, 3, name="up"), layers.GlobalMaxPooling2D()])
    with pytest.raises(thawline.ModelError, match="up"):
        thawline.from_keras(net)
