#!/usr/bin/env python3
"""Opens real weights, and compares what Thawline computes with what their frameworks do: `real_files.py DIR`.

DIR is the folder that real_data.py writes; what is missing there is fetched. For each file: random images go through both, in sizes that
the network takes; the largest difference of the logits, or of the probabilities where the file has no logits, must be below 1e-5 of the
largest value. Then one step of training, and the file that is written opens again with the trained weights: in its own format where that is
written. Needs the package of bindings/python, and torch, timm, keras, onnxruntime, and node with npm.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")

import thawline  # noqa: E402

IMAGES = 4
MOST = 1e-5


def lite0(path, images):
    """The same tensors in timm's network, by their order, which is that of the layers in both."""
    import timm
    import torch

    model = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = iter(torch.load(path, weights_only=True).values())
    model.load_state_dict({name: next(tensors) for name in model.state_dict()})
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def by_keras(path, images):
    import keras

    model = keras.models.load_model(path, compile=False)
    return np.asarray(model(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), training=False).detach())


def by_onnxruntime(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [put] = session.get_inputs()
    if put.shape[-1] == 3:
        images = images.transpose(0, 2, 3, 1)
    # Some files take one image at a time.
    return np.concatenate([session.run(None, {put.name: np.ascontiguousarray(image[None])})[0] for image in images])


TFJS = """
const tf = require("@tensorflow/tfjs"), fs = require("fs");
const [folder, images] = process.argv.slice(1);
(async () => {
  const model = JSON.parse(fs.readFileSync(`${folder}/model.json`));
  const parts = model.weightsManifest.flatMap((group) => group.paths.map((path) => fs.readFileSync(`${folder}/${path}`)));
  const weights = Buffer.concat(parts);
  const network = await tf.loadLayersModel(tf.io.fromMemory({
    modelTopology: model.modelTopology,
    weightSpecs: model.weightsManifest.flatMap((group) => group.weights),
    weightData: weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length),
  }));
  const { shape, values } = JSON.parse(fs.readFileSync(images));
  console.log(JSON.stringify(Array.from(network.predict(tf.tensor(values, shape)).dataSync())));
})();
"""


def by_tfjs(path, images):
    modules = path.parent.parent / "tfjs"
    if not modules.exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", modules, "@tensorflow/tfjs@4"], check=True)
    images = images.transpose(0, 2, 3, 1)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"shape": images.shape, "values": images.ravel().tolist()}, file)
        file.flush()
        environment = os.environ | {"NODE_PATH": str(modules / "node_modules")}
        command = ["node", "-e", TFJS, str(path.parent), file.name]
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return np.array(json.loads(told.strip().splitlines()[-1]), np.float32).reshape(len(images), -1)


FILES = [
    ("efficientnet_lite0.pth", lite0, "logits", [224, 128, 225], "tuned.safetensors"),
    ("mobilenet_v2.h5", by_keras, "predict", [160], "tuned.h5"),
    ("nsfw/model.json", by_tfjs, "predict", [224], "tuned.json"),
    ("open-nsfw.onnx", by_onnxruntime, "predict", [224], "tuned.safetensors"),
    ("ch_ppocr_mobile_v2.0_cls_infer.onnx", by_onnxruntime, "predict", [(48, 192)], "tuned.safetensors"),
]


def main(folder):
    folder = Path(folder).resolve()
    subprocess.run([sys.executable, Path(__file__).with_name("real_data.py"), folder], check=True)
    random = np.random.default_rng(0)
    worst = 0.0
    for name, framework, call, sizes, written in FILES:
        path = folder / name
        for size in sizes:
            height, width = size if isinstance(size, tuple) else (size, size)
            images = random.standard_normal((IMAGES, 3, height, width), np.float32)
            model = thawline.Model.open(path, size=size)
            ours, theirs = getattr(model, call)(images), framework(path, images)
            apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
            worst = max(worst, apart)
            print(f"{name} at {height}×{width}: {apart:.1e} apart, {len(theirs[0])} classes", flush=True)

        session = thawline.Session(model, "full-frozen-bn" if any(map(is_norm, model.layers())) else "full", batch=IMAGES, size=size)
        loss = session.step(images, np.arange(IMAGES) % model.classes, 1e-3)["loss"]
        with tempfile.TemporaryDirectory() as out:
            session.save(Path(out) / written)
            again, trained = thawline.Model.open(Path(out) / written).state_dict(), session.model().state_dict()
        same = all(np.array_equal(again[name], trained[name]) for name in trained if "num_batches" not in name)
        print(f"{name}: a step, of loss {loss:.4f}; {written} {'has the trained weights' if same else 'DIFFERS'}", flush=True)
        worst = worst if same else 1.0
    print(f"at most {worst:.1e} apart")
    sys.exit(bool(worst > MOST))


def is_norm(layer):
    return layer["kind"] == "bn"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
