#!/usr/bin/env bash
# Tries what people say of batch norms and fine-tuning, on the small pretrained network and the embedded images: on images
# of the kind that it was trained on, but under more noise (near), and unlike them (far), and in very small batches. Takes
# about an hour on two CPU cores, and writes benches/results/claims/. What it finds is in docs/results.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

weights=assets/resnet_tiny_shapes.safetensors
results=benches/results/claims
work=target/claims

cargo build --release --quiet
thawline=$PWD/target/release/thawline
rm -rf "$work"
mkdir -p "$work" "$results"
"$thawline" sample-data shapes-noisy "$work/near" --seed 7
"$thawline" sample-data digits-far "$work/far"
"$thawline" sample-data shapes "$work/clean" --seed 7

# 200 labels, 180 steps, and for each policy the best of six learning rates.
policies=()
for policy in head head-adapt bn-only bn-affine full-frozen-bn keras-guide full full-then-frozen-bn; do
    policies+=(--policy "$policy")
done
declare -A head=([near]=keep [far]=new)
for domain in near far; do
    "$thawline" compare --weights "$weights" --data "$work/$domain" --out "$work/compare-$domain" --seeds 3 \
        --head "${head[$domain]}" \
        --train-images 200 --epochs 30 --batch 32 --optimizer adamw --lr auto --weight-decay 0 "${policies[@]}"
    cp "$work/compare-$domain/compare.csv" "$results/$domain.csv"
    # Without the paths of this machine.
    sed "s~$(sed 's~/~\&#x2f;~g' <<<"$PWD/")~~g" "$work/compare-$domain/report.html" >"$results/$domain.html"
done

# Full fine-tuning in batches of one and two, and the same weights with statistics estimated anew.
table=$results/small-batches.csv
echo "batch,seed,before_training,after_training,recalibrated" >"$table"
for batch in 1 2; do
    for seed in 0 1 2; do
        run=$work/batch$batch-seed$seed
        "$thawline" finetune --weights "$weights" --data "$work/clean" --out "$run" --policy full \
            --set 'kind:bn -> update=ema(0.95)' --train-images 200 --epochs 3 --batch "$batch" --optimizer adamw --lr 0.003 \
            --weight-decay 0 --schedule constant --seed "$seed"
        "$thawline" recalibrate --weights "$run/last.safetensors" --data "$work/clean" --batch 32 --out "$run/new.safetensors"
        recalibrated=$("$thawline" eval --weights "$run/new.safetensors" --data "$work/clean" --json --quiet |
            sed -n 's/.*"top1": *\([0-9.]*\).*/\1/p')
        awk -F, -v OFS=, -v batch="$batch" -v seed="$seed" -v recalibrated="$recalibrated" '
            NR == 2 { before = $8 }
            END { print batch, seed, before, $8, recalibrated }
        ' "$run/metrics.csv" >>"$table"
    done
done
cat "$table"
