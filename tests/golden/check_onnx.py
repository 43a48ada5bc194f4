#!/usr/bin/env python3
"""Checks what `thawline fold` writes with ONNX's own checker and with onnxruntime.

For each network, once folded and once with its batch norms: `onnx.checker` in full, then the logits of onnxruntime
against those of `thawline predict` on random images, in one batch and one by one. The folded safetensors file must
predict the same, too. Fails if a difference exceeds 1e-5 of the largest logit.

    cargo build --release
    pip install numpy onnx onnxruntime safetensors
    python3 tests/golden/check_onnx.py [--thawline target/release/thawline] [MODEL|FILE ...]

A MODEL gets random weights and batch norms; without any, the sample network, resnet18 and resnet50 are checked.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT / "assets/resnet_tiny_shapes.safetensors"
TOLERANCE = 1e-5
IMAGES = 3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thawline", default=ROOT / "target/release/thawline", type=Path)
    parser.add_argument("networks", nargs="*", default=[str(TRAINED), "resnet18", "resnet50"], metavar="MODEL|FILE")
    args = parser.parse_args()
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}; largest difference, absolute and relative")
    worst = 0.0
    for network in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            worst = max(worst, check(args.thawline, network, Path(folder)))
    if not worst <= TOLERANCE:
        sys.exit(f"{worst:.1e} is more than {TOLERANCE}")


def check(thawline, network, folder):
    """The largest relative difference."""

    def run(*arguments):
        subprocess.run([thawline, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)

    def predict(file, name):
        run("predict", "--weights", file, "--inputs", folder / "inputs.safetensors", "--out", folder / name)
        return load_file(folder / name)["logits"]

    weights = Path(network)
    size = 64
    if weights.is_file():
        with safe_open(weights, "numpy") as file:
            size = int((file.metadata() or {}).get("size", str(size)).split("x")[0])
    rng = np.random.default_rng(0)
    images = rng.uniform(-2, 2, (IMAGES, 3, size, size)).astype(np.float32)
    save_file({"images": images, "labels": np.zeros(IMAGES, np.int64)}, folder / "inputs.safetensors")
    if not weights.is_file():
        weights = folder / "weights.safetensors"
        random_weights(run, network, folder, weights, rng)

    ours = predict(weights, "logits.safetensors")
    run("fold", "--weights", weights, "--out", folder / "folded.safetensors", "--size", size)
    worst = report(network, "folded safetensors", predict(folder / "folded.safetensors", "folded_logits"), ours)
    for form, options in [("onnx", ["--no-fold"]), ("folded onnx", []), ("folded onnx, batch 3", ["--batch", IMAGES])]:
        path = folder / "network.onnx"
        run("fold", "--weights", weights, "--out", path, "--size", size, *options)
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        whole = session.run(["logits"], {"images": images})[0]
        worst = max(worst, report(network, form, whole, ours))
        if "--batch" not in options:
            single = [session.run(["logits"], {"images": images[i : i + 1]})[0] for i in range(IMAGES)]
            worst = max(worst, report(network, form + ", one by one", np.concatenate(single), ours))
    return worst


def random_weights(run, model, folder, path, rng):
    """Initial weights, of which a step at a learning rate of next to nothing leaves all but the head's alone, and batch
    norms that are not the identity."""
    inputs = folder / "inputs.safetensors"
    run("step", "--model", model, "--inputs", inputs, "--out", path, "--policy", "head", "--lr", "1e-30")
    tensors = load_file(path)
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if f"{layer}.running_var" not in tensors or kind == "num_batches_tracked":
            continue
        u = rng.uniform(-1, 1, tensor.shape)
        # The last batch norm of a branch is kept small, as in trained networks: nothing else bounds a deep one.
        gamma = 0.1 + 0.05 * u if layer.endswith(".bn3") else 0.7 + 0.2 * u
        value = {"weight": gamma, "bias": 0.2 * u, "running_mean": 0.1 * u, "running_var": 1 + 0.5 * u}[kind]
        tensors[name] = value.astype(np.float32)
    save_file(tensors, path)


def report(network, form, theirs, ours):
    absolute = float(np.abs(theirs - ours).max())
    relative = absolute / float(np.abs(ours).max())
    print(f"{Path(network).stem:24} {form:28} {absolute:.1e} {relative:.1e}", flush=True)
    return relative


if __name__ == "__main__":
    main()
