#!/usr/bin/env bash
# Compares what to thaw, and what batch norms should do meanwhile, on images like those that a small network was trained
# on and on images unlike them; on the first device that there is, without a GPU on Mesa's CPU driver. What it writes is in
# target/demo, and is made anew each time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

weights=assets/resnet_tiny_shapes.safetensors
demo=target/demo

echo "Building; the first time this takes some minutes ..."
cargo build --release --quiet
thawline=$PWD/target/release/thawline
start=$SECONDS

rm -rf "$demo"
mkdir -p "$demo"
"$thawline" devices
"$thawline" sample-data shapes-noisy "$demo/near" --seed 7
"$thawline" sample-data digits-far "$demo/far"

policies=()
for policy in head bn-only full; do
    policies+=(--policy "$policy")
done
for domain in near far; do
    echo
    if [[ $domain == near ]]; then
        echo "== near: the network was trained on shapes, and these are other shapes, under more noise"
        head=keep
    else
        echo "== far: handwritten digits, bright on almost as bright"
        head=new
    fi
    "$thawline" compare --weights "$weights" --data "$demo/$domain" --out "$demo/compare-$domain" --head "$head" \
        --train-images 200 --epochs 3 --batch 16 --seeds 2 --optimizer adamw --lr 0.003,0.02 --weight-decay 0 "${policies[@]}"
done

echo
echo "Done in $((SECONDS - start)) s. Two pages to look at:"
for domain in near far; do
    echo "  $PWD/$demo/compare-$domain/report.html"
done
