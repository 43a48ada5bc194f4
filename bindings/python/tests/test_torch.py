"""Against PyTorch's own numbers, on its own objects."""

import copy

import numpy as np
import pytest

import thawline
from thawline import Model, Session

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def fresh():
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10)


@pytest.fixture
def module(fresh):
    module = fresh
    # Batch norms as after training, whose parts can be told apart.
    for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        torch.nn.init.normal_(norm.weight, 1, 0.1)
        torch.nn.init.normal_(norm.bias, 0, 0.1)
    return module.eval()


@pytest.fixture
def images(random):
    return torch.from_numpy(random.standard_normal((8, 3, 64, 64), np.float32))


@pytest.fixture
def labels():
    return torch.arange(8) % 10


def relative(found, expected):
    """The largest difference, as a share of the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_logits_are_torchs(module, images):
    model = thawline.from_torch(module)
    assert (model.name, model.library, model.classes) == ("resnet18", "torchvision", 10)
    with torch.no_grad():
        expected = module(images)
    assert relative(model.logits(images), expected) < 1e-4
    assert relative(model.predict(images), expected.softmax(1)) < 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_steps_are_torchs(fresh, images, labels, optimizer):
    # For these images no value is so near the kink of a ReLU that rounding decides on which side it is, which would change
    # gradients by per cents.
    module = fresh
    session = Session(
        thawline.from_torch(module), "full", optimizer=optimizer, batch=8, size=64, lr=1e-3, weight_decay=0
    )
    keywords = {"momentum": 0.9} if optimizer == "sgd" else {"weight_decay": 0}
    mine = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer](module.parameters(), lr=1e-3, **keywords)
    module.train()
    begun = copy.deepcopy(module.state_dict())
    for _ in range(2):
        mine.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        loss.backward()
        mine.step()
        assert session.step(images, labels)["loss"] == pytest.approx(loss.item(), rel=1e-4)
    found = session.model().to_torch()
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        moved = (tensor - begun[name]).double()
        if not tensor.is_floating_point():
            assert torch.equal(found[name], tensor), name
        elif optimizer == "sgd":
            # Of how far training moved it, beside the rounding of f32 itself.
            off = (found[name] - tensor).double().norm()
            assert off <= 5e-3 * moved.norm() + 1e-6 * tensor.double().norm(), name
        else:
            # AdamW moves by the sign of gradients, also of those that are rounding errors.
            off = ((found[name] - tensor).abs() > 1e-4).double().mean()
            assert off < 0.02, name
    # So are their evaluations.
    module.eval()
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(module(images), labels)
    assert session.evaluate(images, labels)["loss"] == pytest.approx(loss.item(), rel=2e-2)


def test_a_module_takes_the_weights(module, images, labels):
    session = Session(thawline.from_torch(module), "head", batch=8, size=64, lr=0.1)
    session.step(images, labels)
    session.model().load_into(module)
    with torch.no_grad():
        assert relative(session.model().logits(images), module(images)) < 1e-4
    other = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="Missing key"):
        session.model().load_into(other)


def test_state_dicts_and_files_are_taken_as_modules_are(module, tmp_path):
    model = thawline.from_torch(module)
    torch.save(module.state_dict(), tmp_path / "net.pth")
    half = {name: tensor.bfloat16() for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    for other in [
        thawline.from_torch(module.state_dict()),
        thawline.from_torch(torch.nn.DataParallel(module)),
        Model.open(tmp_path / "net.pth"),
    ]:
        assert all(np.array_equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    other = thawline.from_torch(half).state_dict()
    np.testing.assert_allclose(other["fc.weight"], model.state_dict()["fc.weight"], rtol=1e-2)
    headless = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("fc.")}
    assert thawline.from_torch(headless, classes=3, head="optional").classes == 3
    with pytest.raises(thawline.WeightsError, match="has no head `fc`"):
        thawline.from_torch(headless)


def test_tensors_that_need_gradients_are_refused_by_torch_and_not_by_from_torch(module, images):
    with pytest.raises(RuntimeError, match="requires grad"):
        thawline.from_torch(module).logits(images.requires_grad_())


def test_safetensors_are_loaded_strictly(module, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    thawline.from_torch(module).save(tmp_path / "net.safetensors")
    other = copy.deepcopy(module)
    other.load_state_dict(safetensors.load_file(tmp_path / "net.safetensors"), strict=True)


def test_a_timm_module_tells_its_network_and_preprocessing(images):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    module = timm.create_model("resnet18.a1_in1k", pretrained=False, num_classes=5).eval()
    model = thawline.from_torch(module)
    assert (model.name, model.classes) == ("resnet18", 5)
    data = timm.data.resolve_model_data_config(module)
    found = model.preprocessing
    assert found["mean"] == pytest.approx(data["mean"]) and found["crop"] == pytest.approx(data["crop_pct"])
    assert found["interpolation"] == data["interpolation"]
    with torch.no_grad():
        assert relative(model.logits(images), module(images)) < 1e-4
