"""Writes keras/pictures.keras, a small network that Keras trained on images in files, with what it computes for 96 others, and
keras/nested.json: one network as a model within a model, and flat.

    pip install tensorflow-cpu keras pillow && python tests/golden/generate_pictures.py

The images differ in size and shape, and their classes in nothing but how many stripes there are from the left to the right: cut
or enlarged, an image looks like another class. They are computed, not stored: see `picture`. `tests/preprocessing.rs` is the other
side. check_keras.py imports `folder`.
"""

import json
import os
import pathlib
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
import keras  # noqa: E402
from common import splitmix  # noqa: E402

OUT = pathlib.Path(__file__).parent / "keras"
SIZE = (64, 64)
# Half stripes.
STRIPES = [16, 17, 18, 19]
VALIDATION, TRAINING = range(96), range(96, 864)


def picture(index):
    """Stripes under noise, and their class."""
    head = splitmix(f"photo {index}", 3)
    height, width, phase = (int(head[0]) % 81 + 50, int(head[1]) % 81 + 50, int(head[2]) % 128)
    label = index % len(STRIPES)
    stripes = np.abs((np.arange(width) * STRIPES[label] * 64 // width + phase) % 128 - 64) // 2
    noise = (splitmix(f"noise {index}", height * width * 3) >> np.uint64(56)).astype(np.int64).reshape(height, width, 3)
    return (stripes[None, :, None] + noise * 7 // 8).astype(np.uint8), label


def folder(path, indices):
    """The images as files, in a folder for each class."""
    path = pathlib.Path(path)
    for label in range(len(STRIPES)):
        (path / f"class{label}").mkdir(parents=True)
    for index in indices:
        image, label = picture(index)
        Image.fromarray(image).save(path / f"class{label}" / f"{index:03}.png")


def dataset(path, **options):
    return keras.utils.image_dataset_from_directory(path, image_size=SIZE, verbose=False, **options)


def network():
    L = keras.layers
    layers = [L.Input((*SIZE, 3)), L.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")]
    for index, channels in enumerate([8, 16, 16]):
        layers += [L.Conv2D(channels, 5, 2, "same", use_bias=False, name=f"conv{index}"),
                   L.BatchNormalization(momentum=0.9, name=f"bn{index}"), L.ReLU(name=f"relu{index}")]
    layers += [L.GlobalAveragePooling2D(name="pool"), L.Dense(len(STRIPES), name="predictions")]
    return keras.Sequential(layers, name="pictures")


def pictures():
    keras.utils.set_random_seed(1)
    model = network()
    with tempfile.TemporaryDirectory() as temporary:
        train, val = (pathlib.Path(temporary) / name for name in ("train", "val"))
        folder(train, TRAINING)
        folder(val, VALIDATION)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
        model.fit(dataset(train, seed=1), epochs=5, verbose=2)
        batches = list(dataset(val, shuffle=False))
    images, labels = (np.concatenate([batch[part] for batch in batches]) for part in range(2))
    logits = model.predict(images, verbose=0)
    accuracy = float((logits.argmax(1) == labels).mean())
    # What would be seen after enlarging by 256/224 and cutting the centre out.
    zoomed = keras.layers.CenterCrop(56, 56)(images)
    zoomed = float((model.predict(keras.ops.image.resize(zoomed, SIZE), verbose=0).argmax(1) == labels).mean())
    print(f"accuracy {accuracy:.4f}, and {zoomed:.4f} of enlarged images")
    ordered = np.sort(logits, 1)
    print("the two largest logits are apart by at least", (ordered[:, -1] - ordered[:, -2]).min())
    assert accuracy > 0.6 and zoomed < accuracy - 0.2
    # Rounding to bytes moves logits, but no prediction.
    assert (ordered[:, -1] - ordered[:, -2]).min() > 0.002
    inference = keras.models.clone_model(model)
    inference.set_weights(model.get_weights())
    inference.save(OUT / "pictures.keras")
    found = [[round(float(logit), 5) for logit in row] for row in logits]
    (OUT / "pictures.json").write_text(json.dumps({"accuracy": accuracy, "logits": found}) + "\n")


def nested():
    """The beginning of keras.applications.ResNet50, by the names of its layers."""
    L = keras.layers
    image = L.Input((None, None, 3), name="input_layer")
    x = L.Conv2D(8, 7, 2, "same", name="conv1_conv")(image)
    x = L.ReLU(name="conv1_relu")(L.BatchNormalization(name="conv1_bn")(x))
    shortcut = L.BatchNormalization(name="conv2_block1_0_bn")(L.Conv2D(8, 1, name="conv2_block1_0_conv")(x))
    x = L.BatchNormalization(name="conv2_block1_1_bn")(L.Conv2D(8, 1, name="conv2_block1_1_conv")(x))
    x = L.ReLU(name="conv2_block1_out")(L.Add(name="conv2_block1_add")([shortcut, x]))
    base = keras.Model(image, L.GlobalAveragePooling2D(name="pool")(x), name="resnet50")
    within = keras.Sequential([L.Input((64, 64, 3)), base, L.Dense(5, name="predictions")], name="within")
    flat = keras.Model(base.input, L.Dense(5, name="predictions")(base.output), name="functional")
    models = {"nested": json.loads(within.to_json()), "flat": json.loads(flat.to_json())}
    (OUT / "nested.json").write_text(json.dumps(models) + "\n")


if __name__ == "__main__":
    nested()
    pictures()
