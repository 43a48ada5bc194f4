"""Writes pixels_torch.json and pixels_keras.json, with a .bin each: images as torchvision and timm, and as Keras, bring them to
the size of a network's input. Also preprocessing.json: how torchvision and timm prepare images for each network that Thawline
knows by their name.

    pip install torch torchvision timm pillow && python tests/golden/generate_pixels.py torch
    pip install tensorflow-cpu keras pillow && python tests/golden/generate_pixels.py keras

Images are computed, not stored: see `picture`. Each case is an image, a size, a preprocessing in Thawline's words, and the bytes
that the framework makes of it, every `every`-th pixel, which stand one case after the other in the .bin file.
"""

import json
import os
import pathlib
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
import PIL  # noqa: E402
from PIL import Image  # noqa: E402
from common import splitmix  # noqa: E402
from state_dicts import TIMM, TORCHVISION  # noqa: E402

# TensorFlow and PyTorch do not always get along in one process.
if sys.argv[1:] == ["torch"]:
    import timm
    import torchvision
    from timm.data.transforms_factory import transforms_imagenet_eval
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
elif sys.argv[1:] == ["keras"]:
    import keras
    import tensorflow
else:
    sys.exit(__doc__)

HERE = pathlib.Path(__file__).parent

# Height and width.
IMAGES = [(1, 1), (7, 2), (3, 5), (16, 16), (17, 31), (64, 48), (67, 65), (37, 100), (128, 40), (224, 224), (193, 257),
          (375, 500)]
MEAN, STD = [0.5, 0.25, 0.125], [0.5, 0.25, 0.125]
INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]


def picture(height, width):
    """Noise over a gradient: red grows to the right, green downwards, blue falls to the right."""
    noise = (splitmix(f"picture {height}x{width}", height * width * 3) >> np.uint64(57)).astype(np.int64)
    x, y = np.arange(width) * 127 // max(width - 1, 1), np.arange(height) * 127 // max(height - 1, 1)
    gradient = np.stack(np.broadcast_arrays(x[None, :], y[:, None], 127 - x[None, :]), axis=-1)
    return (noise.reshape(height, width, 3) + gradient).astype(np.uint8)


def by_torchvision(image):
    for interpolation in INTERPOLATIONS:
        mode = InterpolationMode(interpolation)
        for size, resize in [(14, 16), (12, 13)]:
            made = Compose([Resize(resize, mode), CenterCrop(size)])(Image.fromarray(image))
            yield "torchvision", (size, size), ("crop", size / resize, interpolation), np.asarray(made), 1
        if min(image.shape[:2]) >= 193:
            made = Compose([Resize(256, mode), CenterCrop(224)])(Image.fromarray(image))
            yield "torchvision", (224, 224), ("crop", 224 / 256, interpolation), np.asarray(made), 397


def by_timm(image):
    for interpolation in INTERPOLATIONS:
        for mode, word in [("center", "crop"), ("squash", "stretch"), ("border", "pad")]:
            for size, crop in [((12, 16), 0.9), ((13, 13), 1.0)]:
                transform = transforms_imagenet_eval(
                    size, crop_pct=crop, crop_mode=mode, interpolation=interpolation, mean=MEAN, normalize=False)
                made = np.asarray(transform(Image.fromarray(image)))
                yield "timm", size, (word, crop, interpolation), made.transpose(1, 2, 0), 1


def by_keras(image):
    """With the function that users call, from a file."""
    with tempfile.TemporaryDirectory() as folder:
        for label in "ab":
            (pathlib.Path(folder) / label).mkdir()
            Image.fromarray(image).save(pathlib.Path(folder) / label / "image.png")
        for interpolation in INTERPOLATIONS:
            ours = f"tf-{interpolation}"
            for first in [False, True]:
                for size in [(12, 16), (13, 13)]:
                    data = keras.utils.image_dataset_from_directory(
                        folder, image_size=size, interpolation=interpolation, crop_to_aspect_ratio=first, shuffle=False,
                        batch_size=1, verbose=False)
                    made = next(iter(data))[0].numpy()[0]
                    made = np.clip(np.rint(made), 0, 255).astype(np.uint8)
                    yield "Keras", size, ("crop-first" if first else "stretch", 1.0, ours), made, 1


# With weights, these networks bring ImageNet's mean and deviation to a half by themselves (`transform_input`).
TRANSFORMING, HALF = {"googlenet", "inception_v3"}, [0.5] * 3


def networks():
    for name in TORCHVISION:
        for weights in torchvision.models.get_model_weights(name):
            by = weights.transforms()
            # Those without a classifier, and those that have another size.
            if "SWAG" in weights.name or "FEATURES" in weights.name:
                continue
            assert by.antialias and len(by.crop_size) == len(by.resize_size) == 1
            yield {"name": name, "set": weights.name, "file": weights.url.rsplit("/")[-1], "size": by.crop_size[0],
                   "resize": "crop", "before": by.resize_size[0], "interpolation": by.interpolation.value,
                   "mean": HALF if name in TRANSFORMING else by.mean, "std": HALF if name in TRANSFORMING else by.std}
    modes = {"center": "crop", "squash": "stretch", "border": "pad"}
    for name in TIMM:
        by = timm.models.get_pretrained_cfg(name)
        assert by.input_size[1] == by.input_size[2]
        here = f"timm_{name}" if name in TORCHVISION else name
        yield {"name": here, "size": by.input_size[1], "resize": modes[by.crop_mode], "crop": by.crop_pct,
               "interpolation": by.interpolation, "mean": by.mean, "std": by.std}


def lines(things):
    return "[\n" + ",\n".join(f"    {json.dumps(thing)}" for thing in things) + "\n  ]"


def write(name, modules, frameworks):
    cases, pixels = [], []
    for height, width in IMAGES:
        image = picture(height, width)
        for by in frameworks:
            for framework, size, (resize, crop, interpolation), made, every in by(image):
                assert made.shape == (*size, 3) and made.dtype == np.uint8
                part = made.reshape(-1, 3)[::every]
                cases.append({"by": framework, "image": [height, width], "size": size, "resize": resize, "crop": crop,
                              "interpolation": interpolation, "every": every, "pixels": len(part)})
                pixels.append(part.tobytes())
    head = json.dumps({"versions": versions(modules), "mean": MEAN, "std": STD})[:-1]
    (HERE / f"{name}.json").write_text(f'{head}, "cases": {lines(cases)}}}\n')
    (HERE / f"{name}.bin").write_bytes(b"".join(pixels))
    print(name, len(cases), "cases,", sum(map(len, pixels)), "bytes")


def versions(modules):
    return {module.__name__: module.__version__ for module in modules}


def main():
    if sys.argv[1] == "keras":
        write("pixels_keras", [PIL, keras, tensorflow], [by_keras])
        return
    write("pixels_torch", [PIL, torchvision, timm], [by_torchvision, by_timm])
    head = json.dumps({"versions": versions([torchvision, timm])})[:-1]
    (HERE / "preprocessing.json").write_text(f'{head}, "networks": {lines(networks())}}}\n')


if __name__ == "__main__":
    main()
