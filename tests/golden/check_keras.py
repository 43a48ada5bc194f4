"""Lets Keras read what Thawline writes into Keras files: a step of training on each, then both predict the same.

    cargo build && python tests/golden/check_keras.py [--large]

Takes the small files beside it, and with --large EfficientNetB0, ResNet50, MobileNetV2 and MobileNetV3Large of keras.applications,
with random weights, since nothing is downloaded. Needs what generate_keras.py needs, and safetensors.
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
import generate_pictures  # noqa: E402

HERE = pathlib.Path(__file__).parent
THAWLINE = HERE.parent.parent / "target" / os.environ.get("PROFILE", "debug") / "thawline"
# Of the largest logit.
TOLERANCE = 1e-4


def thawline(*args):
    subprocess.run([THAWLINE, *map(str, args)], check=True, stdout=subprocess.DEVNULL)


def without_softmax(k, model):
    last = model.layers[-1]
    if getattr(last, "activation", None) is not None and last.activation.__name__ == "softmax":
        last.activation = k.activations.linear
    return model


def load_model(k, path, **options):
    """Keras 3 forgets to finish a Normalization inside a nested model that it reads from .h5: it would not normalise."""
    model = k.models.load_model(path, **options)

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


def applications(folder):
    for k in (keras, tf_keras):
        for name, module, suffix, lr in [
            ("EfficientNetB0", "efficientnet", ".keras", 1e-4),
            ("ResNet50", "resnet50", ".h5", 1e-3),
            ("MobileNetV2", "mobilenet_v2", ".keras", 1e-3),
            ("MobileNetV3Large", "mobilenet_v3", ".keras", 1e-3),
        ]:
            k.utils.set_random_seed(3)
            model = getattr(k.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
            preprocess = getattr(k.applications, module).preprocess_input
            rng = np.random.default_rng(1)
            norms = [layer for layer in model.layers if layer.__class__.__name__ == "BatchNormalization"]
            # Statistics of images, or they would make no difference behind so many layers, and a little beside them.
            dropouts = [layer for layer in model.layers if layer.__class__.__name__ == "Dropout"]
            kept = [(layer, "momentum", layer.momentum) for layer in norms]
            kept += [(layer, "rate", layer.rate) for layer in dropouts]
            for layer, what, _ in kept:
                setattr(layer, what, 0.0)
            model(preprocess(some_images(32, (64, 64), seed=6)), training=True)
            for layer, what, value in kept:
                setattr(layer, what, value)
            for layer in norms:
                gamma, beta, mean, variance = layer.get_weights()
                layer.set_weights([gamma, beta, mean + 0.1 * np.sqrt(variance) * rng.normal(0, 1, mean.shape),
                                   variance * rng.uniform(0.7, 1.3, variance.shape)])
            path = folder / f"{name}_{k.__name__}{suffix}"
            model.save(path)
            yield k, path, lr, preprocess


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
    for k, name in [(keras, "transfer.keras"), (keras, "transfer.h5"), (keras, "resnet.keras"),
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
            ours = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["top1"]
            print(f"{name}.{ending:20} is right on {100 * ours:.2f} % of {len(labels)} files, in Keras {100 * theirs:.2f} %")
            good &= ours == theirs
    return good


def main():
    good = True
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for k, path in files():
            # The one without batch norms.
            good &= check(k, path, folder, policy="full" if path.stem == "separable" else "bn-only")
            # With the optimizer's state, if the file has one.
            k.models.load_model(folder / ("stepped" + path.suffix))
        for name, whole in [("efficient.weights.h5", "efficient.keras"), ("transfer.weights.h5", "transfer.keras"),
                            ("efficient_tf_weights.h5", "efficient_tf.keras")]:
            good &= weights_alone(HERE / "keras" / name, HERE / "keras" / whole, folder)
        good &= head(folder)
        good &= from_files(folder)
        if "--large" in sys.argv:
            for k, path, lr, preprocess in applications(folder):
                good &= check(k, path, folder, lr=lr, preprocess=preprocess)
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
    thawline("step", "--weights", path, *common, "--policy", "bn-only", "--lr", "0.01", "--out", out)
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
