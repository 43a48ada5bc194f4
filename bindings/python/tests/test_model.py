import numpy as np
import pytest

import thawline
from thawline import Model


def test_a_file_is_opened_with_all_that_belongs_to_it(weights):
    model = Model.open(weights)
    assert model.name == "resnet_tiny" and model.size == (16, 16)
    assert model.class_names is None or len(model.class_names) == model.classes
    assert model.preprocessing.keys() == {"resize", "crop", "interpolation", "mean", "std", "bgr"}
    layers = model.layers()
    assert layers[0]["kind"] == "conv" and len(layers[0]["output"]) == 3
    assert sum(layer["parameters"] for layer in layers) == model.parameters
    assert "resnet_tiny" in repr(model)


def test_tensors_come_back_as_they_were(weights, tmp_path):
    model = Model.open(weights)
    state = model.state_dict()
    assert state["conv1.weight"].dtype == np.float32 and state["conv1.weight"].ndim == 4
    assert state["bn1.num_batches_tracked"].dtype == np.int64 and state["bn1.num_batches_tracked"].shape == ()
    assert model.save(tmp_path / "copy.safetensors") == []
    for other in [Model.open(tmp_path / "copy.safetensors"), Model.from_state_dict(state)]:
        assert other.name == model.name
        found = other.state_dict()
        assert found.keys() == state.keys()
        assert all(np.array_equal(found[name], state[name]) for name in state)


def test_options_say_what_the_file_does_not(weights):
    model = Model.open(weights, classes=3, size=(16, 24), class_names=["a", "b", "c"], preprocessing={"std": [0.5] * 3})
    assert (model.classes, model.size, model.class_names) == (3, (16, 24), ["a", "b", "c"])
    assert np.allclose(model.preprocessing["std"], 0.5)
    a, b = (Model.new("resnet_tiny", classes=3, seed=seed).state_dict() for seed in (0, 1))
    assert not np.array_equal(a["conv1.weight"], b["conv1.weight"])
    new = Model.open(weights, head="new", seed=1).state_dict()
    kept = Model.open(weights).state_dict()
    differ = {name for name in new if not np.array_equal(new[name], kept[name])}
    assert differ == {"fc.weight", "fc.bias"}


def test_pixels_and_normalised_values_agree(weights, random):
    model = Model.open(weights)
    pixels = random.integers(0, 256, (5, 16, 16, 3), np.uint8)
    mean, std = (np.float32(model.preprocessing[part]) for part in ("mean", "std"))
    values = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    logits = model.logits(values)
    assert logits.shape == (5, model.classes) and logits.dtype == np.float32
    np.testing.assert_allclose(model.logits(pixels), logits, rtol=1e-5, atol=1e-5)
    # Whatever the batch, views, and other floats.
    np.testing.assert_allclose(model.logits(values[::-1], batch=2)[::-1], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.logits(values.astype(np.float64), batch=8), logits, rtol=1e-5, atol=1e-5)
    probabilities = model.predict(pixels)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(probabilities, powers / powers.sum(1, keepdims=True), rtol=1e-4, atol=1e-6)


def test_arrays_are_taken_by_dlpack(weights, batch):
    class Capsule:
        """Nothing but the protocol."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **keywords):
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    model = Model.open(weights)
    assert np.array_equal(model.logits(Capsule(batch[0])), model.logits(batch[0]))


def test_an_evaluation_is_that_of_the_logits(weights, random):
    model = Model.open(weights)
    images = random.standard_normal((11, 3, 16, 16), np.float32)
    labels = random.integers(0, model.classes, 11)
    logits = model.logits(images).astype(np.float64)
    found = model.evaluate(images, labels, batch=4)
    logsumexp = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    assert found["loss"] == pytest.approx((logsumexp - logits[np.arange(11), labels]).mean(), rel=1e-5)
    assert found["top1"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert found["samples"] == 11


def test_onnx_is_written(weights, tmp_path, batch):
    model = Model.open(weights)
    model.save(tmp_path / "net.onnx")
    other = Model.open(tmp_path / "net.onnx")
    np.testing.assert_allclose(other.logits(batch[0]), model.logits(batch[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ((2, 16, 16, 3), np.float32, r"float32 of the shape \[2, 16, 16, 3\]: expected normalised values of the shape"),
        ((2, 3, 16, 16), np.uint8, r"uint8 of the shape .* expected pixels of the shape \[N, height, width, 3\]"),
        ((3, 16, 16), np.float32, "expected normalised values"),
        ((0, 3, 16, 16), np.float32, "expected normalised values"),
        ((2, 3, 16, 16), np.int64, "int64 .* expected float32"),
        ((2, 3, 16, 16), object, "object .* expected float32"),
    ],
)
def test_wrong_images_are_errors(weights, shape, dtype, said):
    with pytest.raises(thawline.ImageError, match=said):
        Model.open(weights).logits(np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1], "there are 2 labels for 8 images"),
        ([0.5] * 8, "the labels are float64"),
        ([[0]] * 8, "2 dimensions"),
        ([-1] * 8, "the label -1 is none of the classes"),
        ([99] * 8, "the label 99 is none of the classes"),
    ],
)
def test_wrong_labels_are_errors(weights, batch, labels, said):
    with pytest.raises(thawline.ImageError, match=said):
        Model.open(weights).evaluate(batch[0], labels)


def test_errors_are_told_apart_by_what_is_at_fault(weights, tmp_path):
    model = Model.open(weights)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"PK\x03\x04 no archive")
    state = model.state_dict()
    for error, said, call in [
        (thawline.WeightsError, "cannot read", lambda: Model.open(tmp_path / "missing.pth")),
        (thawline.WeightsError, "damaged", lambda: Model.open(broken)),
        (thawline.WeightsError, "no network", lambda: Model.from_state_dict({"a": np.zeros(3)})),
        (thawline.WeightsError, "empty", lambda: Model.from_state_dict({})),
        (thawline.WeightsError, "complex", lambda: Model.from_state_dict({"a": np.zeros(3, complex)})),
        (thawline.WeightsError, "holds NaN", lambda: Model.from_state_dict({**state, "fc.bias": state["fc.bias"] * np.nan})
            .logits(np.zeros((1, 3, 16, 16), np.float32))),
        (thawline.WeightsError, "keras", lambda: model.save(tmp_path / "net.keras")),
        (thawline.ModelError, "did you mean", lambda: Model.new("resnet19")),
        (thawline.ModelError, None, lambda: Model.new("resnet18", classes=0)),
        (thawline.ModelError, None, lambda: model.plan("head", size=0)),
        (thawline.ModelError, None, lambda: model.plan("head", batch=2**40)),
        (thawline.PolicyError, "did you mean|is one of", lambda: thawline.Policy("hed")),
        (thawline.PolicyError, "rule", lambda: thawline.Policy("head", sets=["kind:bn -> stats=none"])),
        (thawline.PolicyError, "layer9", lambda: model.plan(thawline.Policy("head", sets=["name:layer9 -> lr=2"]))),
        (thawline.DeviceError, "no device matches", lambda: thawline.Device("no such device")),
        (ValueError, "optimizer", lambda: model.plan("head", optimizer="lion")),
        (ValueError, "head", lambda: Model.open(weights, head="maybe")),
        (ValueError, "class_names has 2 names", lambda: Model.open(weights, classes=3, class_names=["a", "b"])),
        (ValueError, "no part", lambda: Model.open(weights, preprocessing={"means": 0})),
        (ValueError, "no resize", lambda: Model.open(weights, preprocessing={"resize": "fold"})),
        (ValueError, "backend", lambda: thawline.devices("cuda")),
        (TypeError, None, lambda: model.plan(3)),
        (TypeError, "torch module or a Keras model", lambda: model.load_into(3)),
    ]:  # fmt: skip
        with pytest.raises(error, match=said) as caught:
            call()
        assert isinstance(caught.value, (thawline.ThawlineError, ValueError, TypeError))


def test_lists_for_people():
    assert any(network["name"] == "resnet18" and network["library"] == "torchvision" for network in thawline.models())
    recipes = {recipe["name"]: recipe for recipe in thawline.recipes()}
    assert recipes["head"]["rules"][0] == "head -> weights=train"
    assert recipes["head-then-full"]["stages"]
    device = thawline.devices()[0]
    assert device["index"] == 0 and device["largest_buffer"] > 0
    assert thawline.Device(0).name == device["name"]


def test_a_new_head_is_told_to_logging(weights, caplog):
    Model.open(weights, classes=7)
    assert any("starts anew" in record.message and record.name == "thawline" for record in caplog.records)
