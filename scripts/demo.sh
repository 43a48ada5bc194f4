#!/usr/bin/env bash
# Fine-tunes a small network from shapes to handwritten digits, on the first device that there is; without a GPU that is
# Mesa's CPU driver. What it writes is in target/demo, and is made anew each time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

weights=assets/resnet_tiny_shapes.safetensors
demo=target/demo

thawline() {
    cargo run --release --quiet -- "$@"
}

# Fine-tunes on the data set $1 under the policy $2; leaves a line for the table.
finetune() {
    local run=$demo/$1-$2
    echo
    echo "== $1, policy $2"
    thawline finetune --weights "$weights" --data "$demo/$1" --out "$run" --policy "$2" \
        --epochs 2 --optimizer adamw --lr 0.005
    # Epoch 0 is the state before training.
    awk -F, -v set="$1" -v policy="$2" '
        NR == 2 { before = $8 }
        { after = $8 }
        END { printf "%-12s %-8s %8.1f %% %8.1f %%\n", set, policy, 100 * before, 100 * after }
    ' "$run/metrics.csv" >>"$demo/table.txt"
}

echo "Building; the first time this takes some minutes ..."
cargo build --release --quiet
start=$SECONDS

rm -rf "$demo"
mkdir -p "$demo"
thawline devices
for set in digits digits-far; do
    thawline sample-data "$set" "$demo/$set"
done

echo
echo "== What a step costs when the head alone trains, and when batch norms train with it"
for policy in head bn-only; do
    echo
    thawline plan --weights "$weights" --policy "$policy" | tail -n 7
done

finetune digits bn-only
finetune digits-far head
finetune digits-far bn-only

echo
printf '%-12s %-8s %10s %10s\n' "data" "policy" "before" "after"
cat "$demo/table.txt"
echo
echo "This is validation accuracy. The network was trained on drawn shapes. digits are bright on black; digits-far are the"
echo "same digits, bright on almost as bright. Under head, batch norms keep the statistics of the shapes; under bn-only"
echo "they follow the digits. Done in $((SECONDS - start)) s; the weights are in $demo/*/best.safetensors."
