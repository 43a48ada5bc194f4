#!/usr/bin/env bash
# Compares training steps of 257 networks of torchvision, timm and Keras, from their weights files and as ONNX, with the frameworks'
# own: coverage.sh [--fresh] [--write] [NAME...]. scripts/coverage.py says how, and what the arguments are. Takes hours on two CPU
# cores; what was interrupted goes on where it stopped. The frameworks come from PyPI into target/coverage-python, where PYTHON=…
# names no Python that has them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

python=${PYTHON:-target/coverage-python/bin/python}
if [[ -z ${PYTHON:-} ]]; then
    [[ -x $python ]] || python3 -m venv target/coverage-python
    "$python" -m pip install --quiet torch==2.15.0 torchvision==0.29.2 timm==1.0.31 keras==3.15.1 onnx==1.23.2 onnxscript==0.7.2 \
        safetensors==0.8.0
fi
cargo build --release --locked
"$python" scripts/coverage.py "${CARGO_TARGET_DIR:-target}/release/thawline" "$@"
