#!/usr/bin/env bash
# Runs every test, doctests included, on the first device that there is; without a GPU that is Mesa's CPU driver.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run
    cargo test --doc
else
    # Runs the doctests, too.
    cargo test
fi
