"""Lets Keras read what Thawline writes into Keras files: a step of training on each, then both predict the same.

    cargo build && python tests/golden/check_keras.py [--large]

Takes the small files beside it, and with --large one network of each kind of keras.applications, with random weights, since
nothing is downloaded; names behind it take those alone. Needs what generate_keras.py needs, and safetensors.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
import keras  # noqa: E402
import tf_keras  # noqa: E402
import generate_keras  # noqa: E402
import generate_pictures  # noqa: E402

HERE = pathlib.Path(__file__).parent
THAWLINE = HERE.parent.parent / "target" / os.environ.get("PROFILE", "debug") / "thawline"
# Of the largest logit.
TOLERANCE = 1e-4


def thawline(command, *args):
    force = [] if command == "finetune" else ["--force"]
    subprocess.run([THAWLINE, command, *map(str, args), *force], check=True, stdout=subprocess.DEVNULL)


def without_softmax(k, model):
    last = model.layers[-1]
    if getattr(last, "activation", None) is not None and last.activation.__name__ == "softmax":
        last.activation = k.activations.linear
    return model


def load_model(k, path, **options):
    """Keras 3 forgets to finish a Normalization inside a nested model that it reads from .h5: it would not normalise."""
    own = [("inception_resnet_v2", "CustomScaleLayer"), ("convnext", "LayerScale"), ("convnext", "StochasticDepth")]
    classes = {name: generate_keras.custom(k, module, name) for module, name in own}
    model = k.models.load_model(path, custom_objects=classes, **options)

    def visit(layer):
        for inner in getattr(layer, "layers", []):
            visit(inner)
        if layer.__class__.__name__ == "Normalization":
            layer.finalize_state()

    visit(model)
    return model


def graph_of(path):
    text = subprocess.run([THAWLINE, "inspect", path, "--graph"], check=True, capture_output=True).stdout
    return json.loads(text)


def prepared(images, graph):
    """What the network takes, [N, 3, H, W], of images [N, H, W, 3] with values from 0 to 255."""
    values = (images / 255 - np.float32(graph["mean"])) / np.float32(graph["std"])
    if graph.get("bgr"):
        values = values[..., ::-1]
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


def some_images(n, size, seed=5):
    """Noise over a colour each: noise alone looks the same to a deep network."""
    rng = np.random.default_rng(seed)
    return np.float32(rng.integers(0, 256, (n, 1, 1, 3)) + rng.integers(0, 256, (n, *size, 3))) / 2


def check(k, path, folder, policy="bn-only", lr=0.01, preprocess=lambda images: images):
    """`preprocess` is what the model wants done to images before it gets them."""
    load = lambda file: load_model(k, file, compile=False)  # noqa: E731
    graph = graph_of(path)
    images = some_images(4, graph["size"])
    batch = folder / "batch.safetensors"
    labels = np.arange(len(images), dtype=np.int64) % 5
    save_file({"images": prepared(images, graph), "labels": labels}, batch)
    out = folder / ("stepped" + "".join(path.suffixes))
    thawline("step", "--weights", path, "--inputs", batch, "--policy", policy, "--lr", lr, "--out", out)
    thawline("predict", "--weights", out, "--inputs", batch, "--out", folder / "logits.safetensors")
    ours = load_file(folder / "logits.safetensors")["logits"]
    images = preprocess(images.copy())
    theirs = np.asarray(without_softmax(k, load(out))(images, training=False))
    before = np.asarray(without_softmax(k, load(path))(images, training=False))
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    moved = np.abs(theirs - before).max() / np.abs(before).max()
    apart = np.abs(theirs - theirs.mean(0)).max() / np.abs(theirs).max()
    print(
        f"{path.name:28} {policy:12} differs by {error:.1e} of the largest logit; the step moved them by {moved:.1e}, "
        f"images are {apart:.1e} apart"
    )
    # Keras computes a half-precision model in half precision.
    tolerance = 10 * TOLERANCE if path.stem == "half" else TOLERANCE
    return error <= tolerance and min(moved, apart) > 10 * TOLERANCE


def files():
    for path in sorted((HERE / "keras").iterdir()):
        # What `multiplied` has is refused.
        if path.suffix in (".keras", ".h5") and not path.stem.endswith(("weights", "multiplied")):
            yield (tf_keras if "_tf" in path.name else keras), path


def applications(folder, names):
    for k in (keras, tf_keras):
        for name, module, suffix, lr, side in [
            ("EfficientNetB0", "efficientnet", ".keras", 1e-4, 64),
            ("ResNet50", "resnet50", ".h5", 1e-3, 64),
            ("MobileNetV2", "mobilenet_v2", ".keras", 1e-3, 64),
            ("MobileNetV3Large", "mobilenet_v3", ".keras", 1e-3, 64),
            ("VGG16", "vgg16", ".h5", 1e-2, 32),
            ("ResNet50V2", "resnet_v2", ".h5", 1e-3, 64),
            ("DenseNet121", "densenet", ".h5", 1e-3, 64),
            ("InceptionV3", "inception_v3", ".h5", 1e-3, 80),
            ("InceptionResNetV2", "inception_resnet_v2", ".keras", 1e-3, 80),
            ("ConvNeXtTiny", "convnext", ".keras" if k is keras else ".h5", 1e-3, 64),
        ]:
            if names and name not in names:
                continue
            k.backend.clear_session()
            k.utils.set_random_seed(3)
            shape = (side, side, 3)
            model = getattr(k.applications, name)(weights=None, input_shape=shape, classes=5)
            preprocess = getattr(k.applications, module).preprocess_input
            rng = np.random.default_rng(1)
            norms = [layer for layer in model.layers if layer.__class__.__name__ == "BatchNormalization"]
            # Statistics of images, or they would make no difference behind so many layers, and a little beside them.
            dropouts = [layer for layer in model.layers if layer.__class__.__name__ == "Dropout"]
            kept = [(layer, "momentum", layer.momentum) for layer in norms]
            kept += [(layer, "rate", layer.rate) for layer in dropouts]
            for layer, what, _ in kept:
                setattr(layer, what, 0.0)
            model(preprocess(some_images(32, (side, side), seed=6)), training=True)
            for layer, what, value in kept:
                setattr(layer, what, value)
            for layer in norms:
                *affine, mean, variance = layer.get_weights()
                layer.set_weights([*affine, mean + 0.1 * np.sqrt(variance) * rng.normal(0, 1, mean.shape),
                                   variance * rng.uniform(0.7, 1.3, variance.shape)])
            # It begins at 1e-6, as which a block is nothing.
            for layer in model.layers:
                if layer.__class__.__name__ == "LayerScale":
                    layer.set_weights([rng.uniform(0.2, 0.6, weight.shape) for weight in layer.weights])
            path = folder / f"{name}_{k.__name__}{suffix}"
            model.save(path)
            yield k, path, lr, preprocess
            path.unlink()


def head(folder):
    """A head for other classes: from a folder of images, since only that asks for them."""
    from PIL import Image

    rng = np.random.default_rng(2)
    data = folder / "data"
    for split in ("train", "val"):
        for label in "abc":
            (data / split / label).mkdir(parents=True, exist_ok=True)
            for n in range(4):
                image = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
                image.save(data / split / label / f"{n}.png")
    good = True
    for k, name in [(keras, "transfer.keras"), (keras, "transfer.h5"), (keras, "resnet.keras"), (keras, "flat.keras"),
                    (keras, "joined.keras"), (tf_keras, "flat_tf.h5"),
                    (tf_keras, "transfer_tf.keras"), (tf_keras, "resnet_tf.h5"), (tf_keras, "sequential_tf.h5")]:
        run = folder / ("run_" + name)
        path = HERE / "keras" / name
        thawline("finetune", "--weights", path, "--data", data, "--out", run, "--epochs", 1, "--batch", 4, "--lr", "0.01")
        out = run / ("last" + path.suffix)
        graph = graph_of(out)
        images = rng.integers(0, 256, (3, 12, 12, 3)).astype(np.float32)
        save_file({"images": prepared(images, graph)}, run / "batch.safetensors")
        thawline("predict", "--weights", out, "--inputs", run / "batch.safetensors", "--out", run / "logits.safetensors")
        ours = load_file(run / "logits.safetensors")["logits"]
        theirs = np.asarray(without_softmax(k, load_model(k, out))(images, training=False))
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{name:28} with {theirs.shape[1]} classes differs by {error:.1e} of the largest logit")
        good &= error <= TOLERANCE and theirs.shape[1] == 3
    return good


def from_files(folder):
    """A network is as good on files of all shapes as in Keras, with what a run wrote, to the image."""
    data, run = folder / "pictures", folder / "run_pictures"
    generate_pictures.folder(data / "train", generate_pictures.TRAINING[:64])
    generate_pictures.folder(data / "val", generate_pictures.VALIDATION)
    thawline("finetune", "--weights", HERE / "keras" / "pictures.keras", "--data", data, "--out", run, "--epochs", 1,
             "--batch", 16, "--policy", "bn-only", "--lr", "0.01", "--augment", "crop-flip")
    val = generate_pictures.dataset(data / "val", shuffle=False)
    labels = np.concatenate([labels for _, labels in val])
    good = True
    for name in ["best", "last"]:
        theirs = (keras.models.load_model(run / f"{name}.keras").predict(val, verbose=0).argmax(1) == labels).mean()
        for ending in ["keras", "safetensors"]:
            command = [THAWLINE, "eval", "--weights", run / f"{name}.{ending}", "--data", data, "--json"]
            report = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            ours = json.loads(report)["top1"]
            print(f"{name}.{ending:20} is right on {100 * ours:.2f} % of {len(labels)} files, in Keras {100 * theirs:.2f} %")
            good &= ours == theirs
    return good


def small(folder):
    good = True
    for k, path in files():
        # Those without batch norms.
        others = path.stem.startswith(("convnext", "flat", "joined", "separable"))
        good &= check(k, path, folder, policy="full" if others else "bn-only")
        # With the optimizer's state, if the file has one.
        load_model(k, folder / ("stepped" + path.suffix))
    for name, whole in [("efficient.weights.h5", "efficient.keras"), ("transfer.weights.h5", "transfer.keras"),
                        ("efficient_tf_weights.h5", "efficient_tf.keras"), ("convnext.weights.h5", "convnext.keras")]:
        good &= weights_alone(HERE / "keras" / name, HERE / "keras" / whole, folder)
    good &= head(folder)
    return good & from_files(folder)


def main():
    names = [argument for argument in sys.argv[1:] if argument != "--large"]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        good = True if names else small(folder)
        if "--large" in sys.argv:
            for k, path, lr, preprocess in applications(folder, names):
                policy = "full" if path.stem.startswith(("VGG", "ConvNeXt")) else "bn-only"
                good &= check(k, path, folder, policy, lr, preprocess)
    sys.exit(0 if good else "Keras and Thawline do not agree")


def weights_alone(path, whole, folder):
    """A file of weights alone says nothing of its network; a graph file does."""
    k = tf_keras if "_tf" in path.name else keras
    graph = folder / "graph.json"
    graph.write_text(json.dumps(graph_of(whole)))
    described = json.loads(graph.read_text())
    images = some_images(4, described["size"])
    batch = folder / "batch.safetensors"
    labels = np.arange(len(images), dtype=np.int64)
    save_file({"images": prepared(images, described), "labels": labels}, batch)
    out = folder / path.name
    common = ["--model", graph, "--inputs", batch]
    policy = "full" if path.stem.startswith("convnext") else "bn-only"
    thawline("step", "--weights", path, *common, "--policy", policy, "--lr", "0.01", "--out", out)
    thawline("predict", "--weights", out, *common, "--out", folder / "logits.safetensors")
    ours = load_file(folder / "logits.safetensors")["logits"]
    model = load_model(k, whole, compile=False)
    model.load_weights(out)
    theirs = np.asarray(without_softmax(k, model)(images, training=False))
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{path.name:28} weights only differs by {error:.1e} of the largest logit")
    return error <= TOLERANCE


if __name__ == "__main__":
    main()
