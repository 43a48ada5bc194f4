"""Lets Keras read what Thawline writes into Keras files: a step of training on each, then both predict the same.

    cargo build && python tests/golden/check_keras.py [--large]

Takes the small files beside it, and with --large the EfficientNetB0, ResNet50 and MobileNetV2 of keras.applications,
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


def check(k, path, images, folder, policy="bn-only"):
    """`images` are what the model takes, [N, H, W, 3]."""
    load = lambda file: load_model(k, file, compile=False)  # noqa: E731
    graph = graph_of(path)
    values = (images / 255 - np.float32(graph["mean"])) / np.float32(graph["std"])
    batch = folder / "batch.safetensors"
    labels = np.arange(len(images), dtype=np.int64) % 5
    save_file({"images": np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32), "labels": labels}, batch)
    out = folder / ("stepped" + "".join(path.suffixes))
    thawline("step", "--weights", path, "--inputs", batch, "--policy", policy, "--lr", "0.01", "--out", out)
    thawline("predict", "--weights", out, "--inputs", batch, "--out", folder / "logits.safetensors")
    ours = load_file(folder / "logits.safetensors")["logits"]
    theirs = np.asarray(without_softmax(k, load(out))(images, training=False))
    before = np.asarray(without_softmax(k, load(path))(images, training=False))
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    moved = np.abs(theirs - before).max() / np.abs(before).max()
    print(f"{path.name:28} {policy:12} differs by {error:.1e} of the largest logit; the step moved them by {moved:.1e}")
    return error <= TOLERANCE and moved > 10 * TOLERANCE


def files():
    for path in sorted((HERE / "keras").iterdir()):
        if path.suffix in (".keras", ".h5") and not path.stem.endswith(("weights",)):
            yield (tf_keras if "_tf" in path.name else keras), path


def applications(folder):
    for k in (keras, tf_keras):
        for name, suffix in [("EfficientNetB0", ".keras"), ("ResNet50", ".h5"), ("MobileNetV2", ".keras")]:
            k.utils.set_random_seed(3)
            model = getattr(k.applications, name)(weights=None, input_shape=(64, 64, 3), classes=5)
            rng = np.random.default_rng(1)
            # Statistics that no network without training has.
            for layer in model.layers:
                if layer.__class__.__name__ == "BatchNormalization":
                    gamma, beta, mean, variance = layer.get_weights()
                    layer.set_weights([gamma, beta, mean + rng.normal(0, 0.1, mean.shape),
                                       variance * rng.uniform(0.5, 1.5, variance.shape)])
            path = folder / f"{name}_{k.__name__}{suffix}"
            model.save(path)
            yield k, path


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
        values = (images / 255 - np.float32(graph["mean"])) / np.float32(graph["std"])
        save_file({"images": np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)}, run / "batch.safetensors")
        thawline("predict", "--weights", out, "--inputs", run / "batch.safetensors", "--out", run / "logits.safetensors")
        ours = load_file(run / "logits.safetensors")["logits"]
        theirs = np.asarray(without_softmax(k, load_model(k, out))(images, training=False))
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        print(f"{name:28} with {theirs.shape[1]} classes differs by {error:.1e} of the largest logit")
        good &= error <= TOLERANCE and theirs.shape[1] == 3
    return good


def main():
    good = True
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for k, path in files():
            stem = path.name.split(".")[0]
            images = np.float32(json.loads((HERE / "keras" / f"{stem}.json").read_text())["images"])
            # The one without a linear layer at the end, which bn-only trains.
            good &= check(k, path, images, folder, policy="full" if stem == "mobilenet" else "bn-only")
            # With the optimizer's state, if the file has one.
            k.models.load_model(folder / ("stepped" + path.suffix))
        for name, whole in [("efficient.weights.h5", "efficient.keras"), ("transfer.weights.h5", "transfer.keras"),
                            ("efficient_tf_weights.h5", "efficient_tf.keras")]:
            good &= weights_alone(HERE / "keras" / name, HERE / "keras" / whole, folder)
        good &= head(folder)
        if "--large" in sys.argv:
            for k, path in applications(folder):
                images = np.random.default_rng(5).integers(0, 256, (4, 64, 64, 3)).astype(np.float32)
                good &= check(k, path, images, folder)
    sys.exit(0 if good else "Keras and Thawline do not agree")


def weights_alone(path, whole, folder):
    """A file of weights alone says nothing of its network; a graph file does."""
    k = tf_keras if "_tf" in path.name else keras
    graph = folder / "graph.json"
    graph.write_text(json.dumps(graph_of(whole)))
    images = np.float32(json.loads((HERE / "keras" / f"{whole.stem}.json").read_text())["images"])
    described = json.loads(graph.read_text())
    values = (images / 255 - np.float32(described["mean"])) / np.float32(described["std"])
    batch = folder / "batch.safetensors"
    labels = np.arange(len(images), dtype=np.int64)
    save_file({"images": np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32), "labels": labels}, batch)
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
