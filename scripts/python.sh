#!/usr/bin/env bash
# Builds the Python package, installs it into a fresh virtual environment, and runs its tests there. Tests against PyTorch and
# Keras are skipped where these are not installed:
#
#     scripts/python.sh                              # without them
#     scripts/python.sh torch torchvision keras      # with what pip is to install besides
#     PROFILE=dev scripts/python.sh                  # a build that is made sooner and runs slower
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

python=${PYTHON:-python3}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
environment=$target/python
rm -rf "$environment" "$target/wheels"
"$python" -m venv "$environment"
"$environment/bin/pip" install --quiet "maturin>=1.9,<2" "pytest>=8" numpy safetensors "$@"

"$environment/bin/maturin" build --locked --profile "${PROFILE:-release}" --manifest-path bindings/python/Cargo.toml \
    --interpreter "$environment/bin/python" --out "$target/wheels"
"$environment/bin/pip" install --quiet --no-deps "$target"/wheels/*.whl
"$environment/bin/python" -m pytest bindings/python
