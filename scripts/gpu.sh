#!/usr/bin/env bash
# What a GPU does with Thawline, as one JSON file to send in: which kernels are right, whether training agrees with PyTorch's
# goldens, what steps take under several policies, and PyTorch beside it.
#
#     scripts/gpu.sh build            # where there is cargo: makes target/gpu, a folder that needs nothing else
#     target/gpu/gpu.sh [OPTION...]   # there, or wherever that folder was copied to: neither cargo nor network is needed
#
#     --device NAME|INDEX    the device, as `thawline devices` lists them [default: the first]
#     --seconds N            the whole time [default: 360]
#     --quick                small images and batches in 240 seconds, for slow devices
#     --out FOLDER           where the file goes [default: the current folder]
#     PYTHON=…               a Python that has torch and torchvision [default: python3]
#
# Each part has its share of the time, and what did not fit is named in the file. The exit code is 1 if a kernel is wrong or
# training does not agree. docs/gpu.md says how to read the file, and where to send it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() {
    echo "error: $1" >&2
    exit 1
}

usage() {
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
}

# Strips and copies what a machine without cargo needs into target/gpu.
build() {
    local parity commit size dir out=target/gpu
    cd "$here/.."
    source scripts/setup.sh
    # One command for both, so that their dependencies are built once.
    parity=$(cargo test --release --locked --no-run --test parity --message-format=json-render-diagnostics |
        sed -n 's/.*"kind":\["test"\].*"name":"parity".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [[ -x $parity ]] || fail "cargo built no parity test"
    rm -rf "$out"
    mkdir -p "$out/golden"
    cp target/release/thawline "$out/thawline"
    cp "$parity" "$out/parity"
    if command -v strip >/dev/null; then strip "$out/thawline" "$out/parity"; fi
    cp tests/golden/*.json "$out/golden/"
    # Machines without a desktop often lack the Vulkan loader; it is small, and used only where there is none.
    for dir in /usr/lib/"$(uname -m)"-linux-gnu /usr/lib64 /usr/lib; do
        if [[ -e $dir/libvulkan.so.1 ]]; then
            mkdir -p "$out/lib"
            cp -L "$dir/libvulkan.so.1" "$out/lib/"
            break
        fi
    done
    cp scripts/gpu.sh scripts/gpu_torch.py LICENSE-MIT LICENSE-APACHE "$out/"
    commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    if [[ -n $(git status --porcelain 2>/dev/null) ]]; then commit+=" with changes"; fi
    echo "$commit" >"$out/commit"
    size=$(du -sk "$out" | cut -f 1)
    echo "$out: $((size / 1024)) MB. Copy the folder to the machine that has the GPU, and run ./gpu.sh in it."
    if command -v objdump >/dev/null; then
        echo "It needs glibc $(objdump -T "$out/thawline" "$out/parity" |
            sed -n 's/.*GLIBC_\([0-9.]*\)[) ].*/\1/p' | sort -V | tail -n 1) or newer there."
    fi
}

# A string as JSON.
quote() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\t'/\\t}
    text=${text//$'\n'/\\n}
    # Other control characters, such as colours.
    printf '"%s"' "$(printf '%s' "$text" | tr -d '\000-\037')"
}

# Seconds since the start, and those that are left.
elapsed() { echo $((SECONDS - start)); }
left() { echo $((seconds - (SECONDS - start))); }

# Runs a command for at most $1 seconds; 124 if that was not enough. macOS has no `timeout`.
limited() {
    local limit=$1 pid killer status=0
    shift
    if ((limit <= 0)); then return 124; fi
    if command -v timeout >/dev/null; then
        timeout --kill-after=5 "$limit" "$@" || status=$?
        if ((status == 137)); then status=124; fi
        return "$status"
    fi
    "$@" &
    pid=$!
    (
        sleep "$limit"
        kill "$pid" 2>/dev/null
    ) >/dev/null &
    killer=$!
    wait "$pid" || status=$?
    if kill "$killer" 2>/dev/null; then return "$status"; fi
    return 124
}

skipped=()

# Says what is left out, and why.
skip() {
    echo "   left out: $1: $2"
    skipped+=("{\"part\": $(quote "$1"), \"why\": $(quote "$2")}")
}

join() {
    local separator=$1
    shift
    if (($# == 0)); then return; fi
    printf '%s' "$1"
    shift
    if (($# > 0)); then printf '%s' "${@/#/$separator}"; fi
}

# The last line of a file of messages.
last_line() { grep -v '^[[:space:]]*$' "$1" | tail -n 1 || true; }

part() { echo "== $1 ($(left) s left)"; }

# The Vulkan loader, and where containers keep NVIDIA's driver.
find_vulkan() {
    local dir
    if [[ $(uname -s) != Linux ]]; then return; fi
    if ! PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null | grep -F libvulkan.so.1 >/dev/null &&
        [[ -e $here/lib/libvulkan.so.1 ]]; then
        echo "libvulkan.so.1 is not installed here; the one in $here/lib is used"
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/lib
    fi
    if [[ -n ${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-} ]]; then return; fi
    for dir in /usr/share /usr/local/share /etc; do
        if compgen -G "$dir/vulkan/icd.d/*nvidia*.json" >/dev/null; then return; fi
    done
    if [[ -e /usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json ]]; then
        export VK_DRIVER_FILES=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
        echo "driver: $VK_DRIVER_FILES"
    fi
}

# The first value of a key in JSON that has a line for each, with its escapes.
value() { sed -n "s/^ *\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" "$2" | head -n 1; }

# A file's JSON, or null.
json() { if [[ -s $1 ]]; then cat "$1"; else printf null; fi; }

# Whether training agrees with PyTorch's and Keras's goldens, within $1 seconds.
run_parity() {
    local status=0 limit=$1 name passed=() failed=() cut=()
    "$here/parity" --list --skip golden:: 2>/dev/null | sed -n 's/: test$//p' >"$work/parity.list"
    THAWLINE_GOLDEN=$here/golden THAWLINE_TEST_DEVICE=$device \
        limited "$limit" "$here/parity" --skip golden:: >"$work/parity.log" 2>&1 || status=$?
    while read -r name; do
        case $(sed -n "s/^test $name \.\.\. \([a-zA-Z]*\)\$/\1/p" "$work/parity.log" | head -n 1) in
            ok) passed+=("$(quote "$name")") ;;
            FAILED) failed+=("$(quote "$name")") ;;
            *) cut+=("$(quote "$name")") ;;
        esac
    done <"$work/parity.list"
    echo "   ${#passed[@]} agree, ${#failed[@]} do not, ${#cut[@]} were not finished"
    if ((${#cut[@]} > 0)); then
        if ((status == 124)); then
            skip "${#cut[@]} parity tests" "not done after $limit s"
        else
            skip "${#cut[@]} parity tests" "the suite ended with status $status: $(last_line "$work/parity.log")"
        fi
    fi
    {
        printf '{"passed": [%s],\n' "$(join ', ' ${passed[@]+"${passed[@]}"})"
        printf ' "failed": [%s],\n' "$(join ', ' ${failed[@]+"${failed[@]}"})"
        printf ' "not_finished": [%s],\n' "$(join ', ' ${cut[@]+"${cut[@]}"})"
        # What a failure says stands at the end.
        if ((${#failed[@]} > 0)); then
            printf ' "messages": %s}\n' "$(quote "$(sed -n '/^failures:/,$p' "$work/parity.log" | head -c 20000)")"
        else
            printf ' "messages": null}\n'
        fi
    } >"$work/parity.json"
    ((${#failed[@]} == 0))
}

# Benchmarks of all networks, until $1 seconds from now.
run_benches() {
    local until=$((SECONDS + $1)) index share model status
    for index in "${!models[@]}"; do
        model=${models[index]}
        share=$(((until - SECONDS) / (${#models[@]} - index)))
        if ((share < 3)); then
            skip "bench of $model" "no time was left"
            continue
        fi
        echo "   $model, $share s"
        status=0
        # The limit inside leaves out what would take too long; the one outside is for what takes longer than predicted.
        limited "$share" "$here/thawline" bench --model "$model" --size "$size" --batch "$batches" \
            --policy full --policy keras-guide --policy bn-only --policy head \
            --repeat 5 --time-limit $((share - share / 5)) --json --quiet ${device:+--device "$device"} \
            >"$work/bench-$model.json" 2>"$work/bench.err" || status=$?
        if ((status == 124)); then
            skip "bench of $model" "not done after $share s"
        elif ((status != 0)); then
            skip "bench of $model" "$(last_line "$work/bench.err")"
        fi
        if ((status != 0)); then rm -f "$work/bench-$model.json"; fi
    done
}

run_torch() {
    local status=0 limit=$1 reason
    limited "$limit" "$python" "$here/gpu_torch.py" --seconds $((limit - 3)) --size "$size" --batches "$batches" \
        --models "$(join , "${models[@]}")" --out "$work/torch.json" 2>"$work/torch.err" || status=$?
    if ((status == 0)); then return; fi
    reason=$(last_line "$work/torch.err")
    if ((status == 124)); then reason="not done after $limit s"; fi
    # It writes after each result.
    skip "PyTorch, in part" "$reason"
}

# One JSON value of everything.
assemble() {
    local model benches=() smi=null cpu memory
    for model in "${models[@]}"; do
        if [[ -s $work/bench-$model.json ]]; then benches+=("$(cat "$work/bench-$model.json")"); fi
    done
    if command -v nvidia-smi >/dev/null; then
        smi=$(quote "$(nvidia-smi --format=csv,noheader --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit \
            2>&1 | head -n 4)")
    fi
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo 2>/dev/null | head -n 1)
    memory=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null)
    cat <<END
{
"thawline_gpu": 1,
"date": "$(date -u +%Y-%m-%dT%H:%M:%SZ)",
"device": "$name",
"driver": "$(value driver "$work/chosen.json")",
"backend": "$(value backend "$work/chosen.json")",
"thawline": $(json "$work/version.json"),
"commit": $(quote "$(cat "$here/commit" 2>/dev/null || echo unknown)"),
"host": {"system": $(quote "$(uname -srm)"), "cpu": $(quote "$cpu"), "cores": $(getconf _NPROCESSORS_ONLN), "memory_kib": ${memory:-null}},
"nvidia_smi": $smi,
"settings": {"seconds": $seconds, "quick": $quick, "size": $size, "batches": [$batches]},
"took_seconds": $(elapsed),
"devices": $(json "$work/devices.json"),
"check": $(json "$work/check.json"),
"parity": $(json "$work/parity.json"),
"benches": [$(join ', ' ${benches[@]+"${benches[@]}"})],
"pytorch": $(json "$work/torch.json"),
"left_out": [$(join ', ' ${skipped[@]+"${skipped[@]}"})]
}
END
}

run() {
    local device='' seconds='' quick=false out=. size=224 batches=4,32,128 wrong=0 status file name share reserve=0
    local models=(resnet18 resnet50 efficientnet_b0 mobilenet_v3_large) python=${PYTHON:-python3}
    while (($# > 0)); do
        case $1 in
            --quick) quick=true ;;
            --device | --seconds | --out)
                (($# > 1)) || fail "$1 needs a value"
                case $1 in
                    --device) device=$2 ;;
                    --seconds) seconds=$2 ;;
                    --out) out=$2 ;;
                esac
                shift
                ;;
            *) fail "there is no option $1; see gpu.sh --help" ;;
        esac
        shift
    done
    if "$quick"; then size=64 batches=4,32 seconds=${seconds:-240}; fi
    seconds=${seconds:-360}
    [[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "--seconds $seconds is no number of seconds"
    [[ -d $out ]] || fail "--out $out: there is no such folder"
    for file in thawline parity golden gpu_torch.py; do
        [[ -e $here/$file ]] || fail "$here/$file is missing: \`scripts/gpu.sh build\` makes the folder target/gpu, which has it"
    done
    start=$SECONDS
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    find_vulkan

    part devices
    "$here/thawline" version --json >"$work/version.json"
    if ! "$here/thawline" devices --json >"$work/devices.json" 2>"$work/devices.err"; then
        cat "$work/devices.err" >&2
        fail "no device can be opened. On Linux that takes the loader, libvulkan.so.1 (package libvulkan1 or vulkan-loader, or a \
copy of it in $here/lib), and the vendor's driver with its Vulkan part; in a container of NVIDIA's also \
NVIDIA_DRIVER_CAPABILITIES=all. VK_DRIVER_FILES=/path/to/nvidia_icd.json names a driver that is elsewhere"
    fi
    "$here/thawline" devices

    part "kernels"
    status=0
    # Five seconds are for what comes between the parts.
    share=$((seconds * 3 / 10))
    limited "$share" "$here/thawline" devices --check --json --quiet ${device:+--device "$device"} \
        >"$work/check.json" 2>"$work/check.err" || status=$?
    if ((status == 124)); then
        skip "the check of the kernels" "not done after $share s"
    elif [[ ! -s $work/check.json ]]; then
        skip "the check of the kernels" "$(last_line "$work/check.err")"
    fi
    if ((status == 0)); then
        echo "   $(sed -n 's/^  "\(right\|wrong\|unsupported\)": \([0-9]*\).*/\1 \2/p' "$work/check.json" | paste -sd , -)"
    elif ((status != 124)); then
        wrong=1
        cat "$work/check.err" >&2
    fi
    # The device that was checked, or else the first.
    if [[ -s $work/check.json ]]; then cp "$work/check.json" "$work/chosen.json"; else cp "$work/devices.json" "$work/chosen.json"; fi
    name=$(value name "$work/chosen.json")

    part "parity with PyTorch and Keras"
    run_parity $((seconds / 5)) || wrong=1

    if limited 60 "$python" -c 'import torch, torchvision' 2>/dev/null; then
        reserve=$((seconds / 4))
    else
        skip PyTorch "$python has no torch and torchvision; PYTHON=… names another"
    fi

    part benches
    run_benches $(($(left) - reserve - 5))

    if ((reserve > 0)); then
        part PyTorch
        run_torch $(($(left) - 5))
    fi

    file=$out/thawline-$(date -u +%Y-%m-%d)-$(tr -cs 'A-Za-z0-9\n' - <<<"$name" | tr '[:upper:]' '[:lower:]' | sed 's/^-//;s/-$//').json
    assemble >"$file"
    echo "$file, after $(elapsed) s"
    return "$wrong"
}

case ${1:-run} in
    build) build ;;
    run)
        if (($# > 0)); then shift; fi
        run "$@"
        ;;
    --help | -h) usage ;;
    *) run "$@" ;;
esac
