#!/usr/bin/env bash
# Builds thawline, and writes what a package has beside the program: man pages and completions, below target/extras or the
# folder that is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

out=${1:-target/extras}
cargo build --release --locked
thawline=${CARGO_TARGET_DIR:-target}/release/thawline

"$thawline" man --force "$out/man/man1"
completions() {
    mkdir -p "$(dirname "$out/$2")"
    "$thawline" completions "$1" >"$out/$2"
}
completions bash bash-completion/completions/thawline
completions zsh zsh/site-functions/_thawline
completions fish fish/vendor_completions.d/thawline.fish
completions elvish elvish/lib/thawline.elv
completions powershell powershell/thawline.ps1
