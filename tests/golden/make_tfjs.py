"""Writes the TensorFlow.js models in tests/golden/tfjs, from the files that tf_keras wrote in tests/golden/keras.

Needs h5py and numpy; made with h5py 3.16 and numpy 2.4:

    python tests/golden/make_tfjs.py

What Keras computes with these models is in tests/golden/keras/NAME.json. The container is written by hand, as tensorflowjs_converter
(converters/keras_h5_conversion.py and write_weights.py) and TensorFlow.js itself (src/io/io_utils.ts) write it:

- `efficient`, `hard`, `flat`: the converter's form, the configuration under model_config, weights in two shards that cut a tensor.
- `sequential`: the form of TensorFlow.js and Teachable Machine, the configuration as topology, and a metadata.json.
- `efficient_float16`, `efficient_uint8`, `efficient_uint16`: quantised as `--quantize_*` does it.
"""

import json
import pathlib
import shutil

import h5py
import numpy as np

GOLDEN = pathlib.Path(__file__).parent
OUT = GOLDEN / "tfjs"


def read(name):
    """The configuration and the weights in the order in which the converter lists them."""
    with h5py.File(GOLDEN / "keras" / f"{name}_tf.h5") as file:
        config = json.loads(file.attrs["model_config"])
        version = file.attrs["keras_version"]
        groups = file["model_weights"]
        weights = [
            (weight.split(":")[0], np.array(groups[layer][weight]))
            for layer in groups.attrs["layer_names"]
            for weight in groups[layer].attrs["weight_names"]
        ]
    return config, version, weights


def entry(name, values, quantize):
    """What the manifest says of a weight, and its bytes."""
    listed = {"name": name, "shape": list(values.shape), "dtype": {"float32": "float32", "int64": "int32"}[str(values.dtype)]}
    if listed["dtype"] == "int32":
        return listed, values.astype(np.int32).tobytes()
    if quantize is None:
        return listed, values.astype(np.float32).tobytes()
    if quantize == "float16":
        listed["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        return listed, values.astype(np.float16).tobytes()
    low, high = float(values.min()), float(values.max())
    levels = np.iinfo(quantize).max
    scale = (high - low) / levels if high > low else 1.0
    if low < 0.0 < high:
        # Zero stays zero.
        low = -round(-low / scale) * scale
    stored = np.clip(np.round((values.astype(np.float64) - low) / scale), 0, levels).astype(quantize)
    listed["quantization"] = {"dtype": quantize, "min": low, "scale": scale, "original_dtype": "float32"}
    return listed, stored.tobytes()


def write(out, topology, weights, shards, quantize=None, **more):
    folder = OUT / out
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listed = [entry(name, values, quantize) for name, values in weights]
    content = b"".join(content for _, content in listed)
    each = -(-len(content) // len(shards))
    # A cut within a value, which the format allows.
    each += each % 2 == 0
    for number, shard in enumerate(shards):
        (folder / shard).write_bytes(content[number * each :][: each if number + 1 < len(shards) else None])
    model = {
        "format": "layers-model",
        **more,
        "modelTopology": topology,
        "weightsManifest": [{"paths": shards, "weights": [listed for listed, _ in listed]}],
    }
    (folder / "model.json").write_text(json.dumps(model))


def converted(name, out, quantize=None):
    config, version, weights = read(name)
    topology = {"keras_version": version, "backend": "tensorflow", "model_config": config}
    told = {"generatedBy": f"keras v{version}", "convertedBy": "TensorFlow.js Converter v4.22.0"}
    shards = ["group1-shard1of2.bin", "group1-shard2of2.bin"]
    write(out, topology, weights, shards, quantize, **told)


def main():
    for name in ["efficient", "hard", "flat"]:
        converted(name, name)
    for quantize in ["float16", "uint8", "uint16"]:
        converted("efficient", f"efficient_{quantize}", quantize)
    config, _, weights = read("sequential")
    topology = {**config, "keras_version": "tfjs-layers 4.22.0", "backend": "tensor_flow.js"}
    told = {"generatedBy": "TensorFlow.js tfjs-layers v4.22.0", "convertedBy": None}
    write("sequential", topology, weights, ["weights.bin"], **told)
    metadata = {
        "tfjsVersion": "1.3.1",
        "tmVersion": "2.4.10",
        "packageVersion": "0.8.4-alpha2",
        "packageName": "@teachablemachine/image",
        "modelName": "tm-my-image-model",
        "labels": ["ant", "bee", "cat", "dog", "elk"],
        "imageSize": 12,
    }
    (OUT / "sequential" / "metadata.json").write_text(json.dumps(metadata))


if __name__ == "__main__":
    main()
