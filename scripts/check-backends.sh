#!/usr/bin/env bash
# Runs kernels, whole training steps and an interrupted run on every backend that needs no GPU, and writes what came out to
# the table in docs/backends.md.
#
#     scripts/check-backends.sh            # all; the first time this fetches and builds for half an hour
#     scripts/check-backends.sh NAME…      # these, and their rows only; --list prints the names
#
# Exits with 1 if something fails that docs/backends.md does not explain, or passes although it is explained there. Drivers,
# browsers and compilers are kept in target/cross (or $THAWLINE_CHECK_CACHE); nothing is installed but what building takes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
source scripts/backends/environment.sh

names=(lavapipe-22 lavapipe-25 lavapipe-26 swiftshader gl validation windows deno chromium)
columns=(kernels parity steps resume)

declare -A title=(
    [lavapipe-22]="Vulkan: lavapipe, Mesa 22"
    [lavapipe-25]="Vulkan: lavapipe, Mesa 25"
    [lavapipe-26]="Vulkan: lavapipe, Mesa 26"
    [swiftshader]="Vulkan: SwiftShader"
    [gl]="OpenGL ES: llvmpipe"
    [validation]="Vulkan under validation, with synchronisation"
    [windows]="Windows build under Wine, Vulkan"
    [deno]="WebGPU: Deno"
    [chromium]="WebGPU: Chromium"
)

# The system that a backend runs in.
declare -A system=(
    [lavapipe-22]=bookworm [lavapipe-25]=trixie [lavapipe-26]=forky [swiftshader]=trixie [gl]=trixie [validation]=trixie
    [windows]=trixie [deno]=forky [chromium]=trixie
)

# What fails, by backend and column, and why; what does not run at all, and why, is said by the checks.
declare -A known=()

icd=/usr/share/vulkan/icd.d
declare -A driver=(
    [lavapipe-22]=VK_DRIVER_FILES=$icd/lvp_icd.x86_64.json
    [lavapipe-25]=VK_DRIVER_FILES=$icd/lvp_icd.json
    [lavapipe-26]=VK_DRIVER_FILES=$icd/lvp_icd.json
    [swiftshader]=VK_DRIVER_FILES=/usr/lib/chromium/vk_swiftshader_icd.json
    [gl]=WGPU_BACKEND=gl
    [validation]=VK_DRIVER_FILES=$icd/lvp_icd.json
    [windows]=VK_DRIVER_FILES=$icd/lvp_icd.json
    [deno]=VK_DRIVER_FILES=$icd/lvp_icd.json
    [chromium]=VK_DRIVER_FILES=/usr/lib/chromium/vk_swiftshader_icd.json
)

# Of what is equal by definition but for rounding.
limit=1e-6
weights=assets/resnet_tiny_shapes.safetensors
variants=(direct workgroup)
# As in tests/web/src/lib.rs.
training=(--model resnet_tiny --policy full --optimizer sgd --lr 0.01 --momentum 0.9 --weight-decay 0 --steps 3)

# on BACKEND [VARIABLE=VALUE]… COMMAND…
on() {
    local backend=$1
    shift
    within "${system[$backend]}" "${driver[$backend]}" "$@"
}

# Checks print what the table says, and more to $log; their status says whether it is as it should be.

kernels() {
    local status=0 out=$work/$1.kernels.json
    on "$1" "${extra[@]}" "$thawline" devices --check --json --quiet >"$out" 2>>"$log" || status=$?
    cat "$out" >>"$log"
    python3 -c 'if True:
        import json, sys
        # The validation layer writes to standard output, too.
        found, _ = json.JSONDecoder().raw_decode(open(sys.argv[1]).read().lstrip())
        wrong = [kernel["kernel"] for kernel in found["kernels"] if kernel["failure"]]
        print(found["right"], "right,", found["wrong"], "wrong,", found["unsupported"], "not supported", end="")
        print("; wrong:", ", ".join(wrong) if wrong else "none")
    ' "$out" 2>>"$log" | sed 's/; wrong: none//' || status=1
    return $status
}

parity() {
    on "$1" "${extra[@]}" "$parity_tests" --exact resnet_tiny --nocapture >"$log.parity" 2>&1
    local status=$?
    cat "$log.parity" >>"$log"
    # A line a case, with the share of what it may be away from PyTorch; and one for each number that is further away.
    local cases failed worst
    cases=$(grep -c '^resnet_tiny/.*: at most' "$log.parity")
    failed=$(grep -E '^resnet_tiny/.*: .* > ' "$log.parity" | cut -d: -f1 | sort -u | wc -l)
    worst=$(sed -n 's/.*: at most \([0-9.]*\) of what.*/\1/p' "$log.parity" | sort -g | tail -n 1)
    ((cases > 0)) || status=1
    echo "$((cases - failed)) passed, $failed failed, at most ${worst:-?} of what is allowed"
    return $status
}

# native SYSTEM BACKEND VARIANT: three steps, to compare with.
native() {
    local out=$work/native-$1-$2
    mkdir -p "$out"
    [[ -e $out/$3.safetensors ]] ||
        within "$1" "${driver[$2]}" "$thawline" step "${training[@]}" --weights "$weights" --inputs "$work/batch.safetensors" \
            --variant "$3" --out "$out/$3.safetensors" >"$out/$3.json" 2>>"$log" || return
    reference=$out/$3
}

# apart FOLDER BACKEND: how far the results in a folder are from the native ones on the same driver.
apart() {
    local variant text=() status=0
    for variant in "${variants[@]}"; do
        native "${system[$2]}" "$2" "$variant" || return
        text+=("$variant: $(python3 scripts/backends/tensors.py compare "$limit" "$reference.safetensors" \
            "$1/$variant.safetensors" "$reference.json" "$1/$variant.json" 2>>"$log")") || status=1
    done
    local IFS=';'
    echo "${text[*]}" | sed 's/;/; /g'
    return $status
}

# The run is killed after its first epoch, goes on, and must end with the bits of one that was left alone.
resume() {
    local run=$work/$1/run data=$work/shapes
    rm -rf "$run"
    mkdir -p "$run"
    local finetune=(finetune --weights "$weights" --data "$data" --policy full --variant workgroup --epochs 3 --batch 16
        --train-images 32 --lr 0.01 --augment flip)
    on "$1" "${extra[@]}" "$thawline" "${finetune[@]}" --out "$run/whole" >>"$log" 2>&1 || return
    on "$1" "${extra[@]}" bash -c 'echo $$ >"$0"; exec "$@"' "$run/process" "$thawline" "${finetune[@]}" --out "$run/killed" \
        >>"$log" 2>&1 &
    interrupt "$run" $! || return
    on "$1" "${extra[@]}" "$thawline" finetune --resume "$run/killed" >>"$log" 2>&1 || return
    same "$run"
}

# interrupt FOLDER JOB: kills the process whose number is in the folder as soon as its run has an epoch.
interrupt() {
    local lines
    while kill -0 "$2" 2>/dev/null; do
        lines=$(cat "$1/killed/metrics.csv" 2>/dev/null | wc -l)
        if ((lines >= 3)); then
            kill -KILL "$(cat "$1/process")" 2>/dev/null || true
            break
        fi
        sleep 0.05
    done
    if wait "$2" 2>/dev/null; then
        echo "the run ended before it could be killed"
        return 1
    fi
}

same() {
    cmp "$1/whole/last.safetensors" "$1/killed/last.safetensors" >>"$log" 2>&1 || {
        echo "the bits differ"
        return 1
    }
    echo "same bits"
}

# Everything as elsewhere, under the validation layer; it writes to a file of its own what it finds.
validated() {
    local column=$1 text status=0 errors warnings file=$work/validation-$1.txt
    printf 'khronos_validation.%s\n' "debug_action = VK_DBG_LAYER_ACTION_LOG_MSG" "report_flags = error,warn,info" \
        "log_filename = $file" "enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT" \
        "validate_sync = true" "enable_message_limit = false" >"$work/vk_layer_settings.txt"
    extra=(VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation "VK_LAYER_SETTINGS_PATH=$work/vk_layer_settings.txt")
    rm -f "$file"
    text=$("$column" validation) || status=$?
    extra=()
    # The layer says at the beginning what it does, so silence is none of its absence.
    if ! grep -qi 'synchronization' "$file" 2>/dev/null; then
        echo "the validation layer was not there"
        return 1
    fi
    errors=$(grep -c '^Validation Error' "$file")
    warnings=$(grep -c '^Validation Warning\|^Validation Performance Warning' "$file")
    cat "$file" >>"$log"
    echo "$text; $errors errors, $warnings warnings"
    ((errors == 0)) || return 1
    return "$status"
}

# The same path as Windows writes it; Wine calls the root of the file system Z:.
winpath() {
    echo "Z:${1//\//\\}"
}

wine=(/usr/lib/wine/wine64)

# Sets the environment that Wine needs: a prefix, and an X server, without which it gives programs no Vulkan.
begin_wine() {
    windows || return
    local number=$work/display
    mkfifo "$number"
    # shellcheck disable=SC2016 # The inner shell expands them.
    within trixie bash -c 'echo $$ >"$0"; exec "$@"' "$work/xvfb" Xvfb -displayfd 3 -screen 0 640x480x24 -nolisten tcp \
        3>"$number" >>"$log" 2>&1 &
    trap end_wine EXIT
    local display
    read -r -t 30 display <"$number" || { cannot "Xvfb does not start"; return 1; }
    rm "$number"
    extra=("DISPLAY=:$display" "WINEPREFIX=$cache/wine" WINEDEBUG=-all "WINEDLLOVERRIDES=mscoree,mshtml=")
    on windows "${extra[@]}" "${wine[@]}" wineboot --init >>"$log" 2>&1 || { cannot "Wine does not start"; return 1; }
}

end_wine() {
    [[ -e $work/xvfb ]] || return 0
    on windows "${extra[@]}" /usr/lib/wine/wineserver --kill >>"$log" 2>&1 || true
    kill "$(cat "$work/xvfb")" 2>/dev/null || true
    rm "$work/xvfb"
    trap - EXIT
    extra=()
}

windows_steps() {
    local out=$work/windows/steps variant
    rm -rf "$out"
    mkdir -p "$out"
    for variant in "${variants[@]}"; do
        on windows "${extra[@]}" "${wine[@]}" "$windows" step "${training[@]}" --weights "$(winpath "$PWD/$weights")" \
            --inputs "$(winpath "$work/batch.safetensors")" --variant "$variant" --out "$(winpath "$out/$variant.safetensors")" \
            >"$out/$variant.json" 2>>"$log" || return
    done
    apart "$out" windows
}

# As resume, below folders whose names are no ASCII and have spaces in them.
windows_resume() {
    local run="$work/windows/Läufe für 画像"
    rm -rf "$run"
    mkdir -p "$run"
    local finetune=(finetune --weights "$(winpath "$PWD/$weights")" --data "$(winpath "$run/Bilder ж")" --policy full
        --variant workgroup --epochs 3 --batch 16 --train-images 32 --lr 0.01 --augment flip)
    local thawline=(on windows "${extra[@]}" "${wine[@]}" "$windows")
    "${thawline[@]}" sample-data shapes "$(winpath "$run/Bilder ж")" --per-class 5 >>"$log" 2>&1 || return
    "${thawline[@]}" "${finetune[@]}" --out "$(winpath "$run/whole")" >>"$log" 2>&1 || return
    on windows "${extra[@]}" bash -c 'echo $$ >"$0"; exec "$@"' "$run/process" "${wine[@]}" "$windows" "${finetune[@]}" \
        --out "$(winpath "$run/killed")" >>"$log" 2>&1 &
    interrupt "$run" $! || return
    "${thawline[@]}" finetune --resume "$(winpath "$run/killed")" >>"$log" 2>&1 || return
    same "$run"
}

chrome=(/usr/lib/chromium/chromium --headless --no-sandbox --enable-unsafe-webgpu --use-webgpu-adapter=swiftshader
    --enable-features=Vulkan --no-first-run --disable-background-networking --disable-component-update --disable-sync)

page_in() {
    local out=$work/$1 browser=()
    [[ $1 == deno ]] || browser=("${chrome[@]}" "--user-data-dir=/tmp/thawline-chromium-$$")
    mkdir -p "$work/inputs"
    cp "$work/batch.safetensors" "$work/inputs/"
    cp "$weights" "$work/inputs/weights.safetensors"
    on "$1" NO_COLOR=1 "DENO_DIR=$cache/deno/cache" "$deno" run --quiet --no-config --allow-all tests/web/run.mjs "$page" \
        "$work/inputs" "$out" "${browser[@]}" >>"$log" 2>&1 || return
    apart "$out" "$1"
}

# device BACKEND: its name and its driver, as the table has them.
device() {
    case $1 in
    deno) echo "Deno $("$deno" --version | sed -n 's/^deno \([0-9.]*\).*/\1/p'), $(device lavapipe-26)" ;;
    chromium) echo "$(on chromium "${chrome[0]}" --version | sed 's/ *$//'), its SwiftShader" ;;
    windows) echo "$(within trixie "${wine[@]}" --version | sed 's/ .*//'), $(device lavapipe-25)" ;;
    *)
        on "$1" "${extra[@]}" "$thawline" devices --json 2>>"$log" |
            python3 -c 'import json, sys; first = json.load(sys.stdin)[0]; print(first["name"] + "; " + first["driver"])'
        ;;
    esac
}

# check BACKEND COLUMN COMMAND…: fills a cell, and judges it by what is known.
check() {
    local key=$1/$2 status=0
    echo "$1: $2 ..." >&2
    printf '\n== %s: %s\n' "$1" "$2" >>"$log"
    cell[$2]=$("${@:3}") || status=$?
    [[ -n ${cell[$2]} ]] || cell[$2]="did not end well"
    if ((status != 0)) && [[ -z ${known[$key]:-} ]]; then
        cell[$2]="**failed**: ${cell[$2]}"
        wrong+=("$key: ${cell[$2]}; $log")
    elif ((status != 0)); then
        cell[$2]="fails, as explained below: ${cell[$2]}"
    elif [[ -n ${known[$key]:-} ]]; then
        wrong+=("$key passes: it need no longer be explained")
    fi
    echo "    ${cell[$2]}" >&2
}

# run BACKEND: its row, in ${rows[BACKEND]}.
run() {
    local name=$1 begin=$SECONDS column cells=
    local -A cell=([kernels]="–" [parity]="–" [steps]="–" [resume]="–")
    local driver_text="–"
    log=$work/$name.log
    extra=()
    : >"$log"
    rm -f "$cache/reason"
    if ! "prepare_${name//-[0-9]*/}" "$name"; then
        cells="not run: $(cat "$cache/reason" 2>/dev/null || echo "see $log")"
        wrong+=("$name: $cells")
        rows[$name]="| ${title[$name]} | – | $cells | – | – | – | $(date -u +%F) | – |"
        return
    fi
    driver_text=$(device "$name") || driver_text="?"
    case $name in
    deno | chromium) check "$name" steps page_in "$name" ;;
    windows)
        check "$name" steps windows_steps
        check "$name" resume windows_resume
        end_wine
        ;;
    validation)
        for column in kernels parity resume; do check "$name" "$column" validated "$column"; done
        ;;
    *)
        for column in kernels parity resume; do check "$name" "$column" "$column" "$name"; done
        ;;
    esac
    for column in "${columns[@]}"; do cells+=" ${cell[$column]} |"; done
    rows[$name]="| ${title[$name]} | $driver_text |$cells $(date -u +%F) | $(((SECONDS - begin + 59) / 60)) min |"
}

prepare_lavapipe() { "${system[$1]}"; }
prepare_swiftshader() { trixie; }
prepare_gl() { trixie; }
prepare_validation() { trixie; }
prepare_windows() { trixie && { begin_wine || { end_wine; return 1; }; }; }
prepare_deno() { forky && deno && page; }
prepare_chromium() { trixie && deno && page; }

# The table, with the rows that were made now, and those of before for the rest.
write_table() {
    local name key old file=docs/backends.md
    {
        sed '/^<!-- table: begin/q' "$file"
        echo
        echo "| backend | device and driver | kernels | parity | 3 steps, from native ones | killed and resumed | date | time |"
        echo "|---|---|---|---|---|---|---|---|"
        for name in "${names[@]}"; do
            old=$(grep -F "| ${title[$name]} |" "$file") || true
            echo "${rows[$name]:-${old:-| ${title[$name]} | – | not run yet | – | – | – | – | – |}}"
        done
        echo
        for name in "${names[@]}"; do
            for key in "${columns[@]}"; do
                [[ -z ${known[$name/$key]:-} ]] || echo "- **${title[$name]}, $key:** ${known[$name/$key]}"
            done
        done
        echo
        sed -n '/^<!-- table: end/,$p' "$file"
    } | cat -s >"$work/backends.md"
    cp "$work/backends.md" "$file"
}

if [[ ${1:-} == --list ]]; then
    printf '%s\n' "${names[@]}"
    exit
fi
(($# > 0)) || set -- "${names[@]}"
for name in "$@"; do
    [[ -n ${title[$name]:-} ]] || fail "$name: there is no such backend; the backends are ${names[*]}"
done

work=$cache/work
rm -rf "$work"
mkdir -p "$work"
echo "Building ..." >&2
# This builds the command line, too.
thawline=$PWD/target/debug/thawline
parity_tests=$(cargo test --quiet --locked --no-run --test parity --message-format json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\/parity-[0-9a-f]*\)".*/\1/p')
[[ -x $parity_tests ]] || fail "tests/parity.rs was not built"
python3 scripts/backends/tensors.py batch "$work/batch.safetensors"
"$thawline" sample-data shapes "$work/shapes" --per-class 5 >/dev/null

declare -A rows=()
wrong=()
extra=()
for name in "$@"; do run "$name"; done
write_table
for line in "${wrong[@]}"; do echo "error: $line" >&2; done
((${#wrong[@]} == 0))
