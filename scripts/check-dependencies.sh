#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, sources, banned crates, duplicate versions, and, where the database
# of advisories can be fetched, known faults. Installs cargo-deny below target/ the first time, which takes minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

tools=$PWD/target/tools
deny=$(command -v cargo-deny || true)
if [[ -z $deny ]]; then
    deny=$tools/bin/cargo-deny
    [[ -x $deny ]] || cargo install --quiet --locked --root "$tools" cargo-deny
fi

"$deny" check licenses bans sources
if ! "$deny" fetch db >/dev/null 2>&1; then
    echo "advisories: not checked, since their database could not be fetched" >&2
else
    "$deny" check advisories
fi
