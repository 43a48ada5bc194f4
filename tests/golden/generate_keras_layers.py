"""Writes keras/layers.json: models within models, and which layers Python's slices of their `layers` take.

    pip install keras torch && KERAS_BACKEND=torch python tests/golden/generate_keras_layers.py

No weights are kept, only each model's configuration, without what no reader of layers needs. A slice is of `model.layers`, or
of the `layers` of a model within, whose path is before it: "efficientnetb0/100..". What it takes are, as runs of `weighted`, the
layers with weights that train after `for layer in base.layers[100:]: layer.trainable = True` in a model that is frozen otherwise.
"""

import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras  # noqa: E402

OUT = pathlib.Path(__file__).parent / "keras" / "layers.json"
L = keras.layers


def augmentation():
    return keras.Sequential(
        [L.RandomFlip("horizontal"), L.RandomRotation(0.1), L.RandomZoom(0.1), L.RandomContrast(0.1)],
        name="augmentation",
    )


def deep():
    """A Sequential within a Functional within a Functional, arithmetic between layers, and two models with the same names."""

    def convs(name):
        return keras.Sequential(
            [
                L.Conv2D(8, 3, padding="same", use_bias=False, name="block1_conv"),
                L.BatchNormalization(name="block1_bn"),
                L.ReLU(name="block1_relu"),
                L.ZeroPadding2D(1, name="block2_pad"),
                L.Conv2D(8, 3, name="block2_conv"),
            ],
            name=name,
        )

    image = L.Input((32, 32, 3), name="features_input")
    x = L.Conv2D(8, 3, strides=2, padding="same", name="stem_conv")(image)
    x = x + convs("inner")(x)
    x = L.ReLU(name="middle_relu")(x)
    x = L.BatchNormalization(name="top_bn")(convs("second")(x))
    outer = keras.Model(image, x, name="outer")
    image = L.Input((32, 32, 3), name="image")
    x = L.Rescaling(1 / 255, name="rescaling")(augmentation()(image))
    x = L.GlobalAveragePooling2D(name="gap")(outer(x, training=False))
    x = L.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, L.Dense(5, activation="softmax", name="predictions")(x), name="deep")


def guide(application, name):
    """As in Keras's guide to transfer learning."""
    base = application(include_top=False, weights=None, input_shape=(64, 64, 3), name=name)
    image = L.Input((64, 64, 3), name="image")
    x = L.Rescaling(1 / 127.5, offset=-1, name="rescaling")(augmentation()(image))
    x = L.GlobalAveragePooling2D(name="gap")(base(x, training=False))
    x = L.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, L.Dense(5, name="predictions")(x), name="guide")


def sequential(application, name):
    """The same as a Sequential, whose `layers` have no InputLayer."""
    base = application(include_top=False, weights=None, input_shape=(64, 64, 3), name=name)
    layers = [L.Input((64, 64, 3)), augmentation(), L.Rescaling(1 / 127.5, offset=-1, name="rescaling"), base]
    layers += [L.GlobalAveragePooling2D(name="gap"), L.Dropout(0.2, name="dropout"), L.Dense(5, name="predictions")]
    return keras.Sequential(layers, name="guide")


def within(model, path=""):
    """All models, by path."""
    yield path, model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from within(layer, f"{path}/{layer.name}".lstrip("/"))


def leaves(model, path=""):
    """The layers with weights, by path."""
    for layer in model.layers:
        name = f"{path}/{layer.name}".lstrip("/")
        if isinstance(layer, keras.Model):
            yield from leaves(layer, name)
        elif any("seed" not in weight.path for weight in layer.weights):
            yield name, layer


def taken(model, layers):
    model.trainable = False
    for layer in layers:
        layer.trainable = True
    return [name for name, layer in leaves(model) if layer.trainable and not isinstance(layer, L.Normalization)]


def runs(names, all_names):
    """Where the names stand among all, as the beginnings and ends of runs."""
    out = []
    for index in (all_names.index(name) for name in names):
        if out and out[-1][1] == index:
            out[-1][1] += 1
        else:
            out.append([index, index + 1])
    return out


def slices(model):
    names = [name for name, _ in leaves(model)]
    for path, inner in within(model):
        count = len(inner.layers)
        some = {0, 1, 2, 3, count // 2, count - 2, count - 1} | set(range(0, count, 20))
        for start in sorted(index for index in some if 0 <= index < count):
            for text, layers in [
                (f"{start}..", inner.layers[start:]),
                (f"..{start}", inner.layers[:start]),
                (f"{start}", [inner.layers[start]]),
                (f"{start - count}..", inner.layers[start - count :]),
                (f"..{start - count}", inner.layers[: start - count]),
            ]:
                yield f"{path}/{text}".lstrip("/"), runs(taken(model, layers), names)


def pruned(value):
    """Without initializers, types and what else says nothing of a layer's place."""
    dropped = {"registered_name", "build_config", "dtype", "trainable", "synchronized", "compile_config"}
    if isinstance(value, dict):
        kept = {key: pruned(inner) for key, inner in value.items() if key not in dropped}
        return {key: inner for key, inner in kept.items() if inner is not None and "_initializer" not in key}
    return [pruned(inner) for inner in value] if isinstance(value, list) else value


def main():
    applications = keras.applications
    models = {
        "deep": deep(),
        "efficientnet": guide(applications.EfficientNetB0, "efficientnetb0"),
        "mobilenet": sequential(applications.MobileNetV2, "mobilenetv2_1.00_64"),
    }
    record = {}
    for name, model in models.items():
        config = json.loads(model.to_json())
        record[name] = {
            "config": pruned(config),
            "weighted": [name for name, _ in leaves(model)],
            "models": {path: len(inner.layers) for path, inner in within(model)},
            "slices": dict(slices(model)),
        }
    OUT.write_text(json.dumps({"keras": keras.__version__, "models": record}, separators=(",", ":")) + "\n")
    print(OUT, OUT.stat().st_size)


if __name__ == "__main__":
    main()
