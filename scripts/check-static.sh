#!/usr/bin/env bash
# Compiles every pipeline that the plans of four networks ask for with Mesa's compilers for real GPUs, without a GPU: a shim
# stands in for the kernel's driver, and nothing is executed.
#
#   scripts/check-static.sh [--write] [TARGET…]     # all targets, if none is named
#
#   navi21, navi31, gfx1201   Radeon RX 6800, 7900 and 9070: RADV
#   ampere                    GeForce RTX 30: NVK, not NVIDIA's own driver
#   m1                        Apple M1: Honeykrisp, not Apple's own driver
#   adreno                    Snapdragon, Adreno 740: Turnip
#
# Prints how many pipelines compile for each target, and how many of those that GPUs run spill registers; others are for drivers
# that compute on the CPU, and for devices with small workgroups. Compares each with the newest table in benches/static: --write
# replaces it by what the drivers tell now, and puts the counts into docs/shaders.md. Exit code 1 if a pipeline does not compile, or,
# without --write, if one that GPUs run spills more, or if less of it runs at once, than the table says.
#
# Needs an x86-64 Linux with apt-get, dpkg and cc, but no root: Mesa 26 and the libraries it needs are downloaded from Debian's
# suite `forky` and unpacked in target/check-static, 430 MB. DEBIAN_MIRROR names another mirror.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

write=
targets=()
for argument in "$@"; do
    case $argument in
    --write) write=1 ;;
    navi21 | navi31 | gfx1201 | ampere | m1 | adreno) targets+=("$argument") ;;
    *) fail "there is no target $argument: name some of navi21, navi31, gfx1201, ampere, m1, adreno" ;;
    esac
done
if ((${#targets[@]} == 0)); then targets=(navi21 navi31 gfx1201 ampere m1 adreno); fi
[[ $(uname -sm) == "Linux x86_64" ]] && command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    fail "the compilers come as Debian packages for x86-64 Linux, and apt-get and dpkg unpack them"

cache=$PWD/target/check-static
root=$cache/mesa
lib=$root/usr/lib/x86_64-linux-gnu

# Unpacks Mesa with all that it needs, down to the C library, into $root.
unpack_mesa() {
    local state=$cache/apt mirror=${DEBIAN_MIRROR:-}
    if [[ -z $mirror ]]; then
        mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
            grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ') || true
    fi
    mkdir -p "$state"/{lists/partial,cache/archives/partial}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-https://deb.debian.org/debian} forky main" \
        >"$state/sources.list"
    # As if nothing were installed, so that everything is downloaded.
    : >"$state/status"
    local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status"
        -o "Dir::Cache=$state/cache" -o APT::Install-Recommends=false -o Debug::NoLocking=true)
    echo "Downloading Mesa 26 from $(cut -d ' ' -f 3- "$state/sources.list") ..."
    "${apt[@]}" update
    "${apt[@]}" install -y --download-only mesa-vulkan-drivers libvulkan1 libvulkan-dev >/dev/null
    # It conflicts with nothing that is needed, and depends on what is needed only in a real system.
    (cd "$state/cache/archives" && "${apt[@]}" download mesa-drm-shim)
    rm -rf "$root.new"
    mkdir -p "$root.new"
    local deb
    for deb in "$state"/cache/archives/*.deb; do dpkg -x "$deb" "$root.new"; done
    rm -rf "$root" "$state/cache"
    mv "$root.new" "$root"
}
[[ -e $root ]] || unpack_mesa

# Runs a command on a target's driver.
on() {
    local target=$1 shim driver variables=()
    shift
    case $target in
    navi21 | navi31 | gfx1201) shim=amdgpu driver=radeon variables=("AMDGPU_GPU_ID=$target") ;;
    ampere) shim=nouveau driver=nouveau variables=(NOUVEAU_CHIPSET=0x174 NVK_I_WANT_A_BROKEN_VULKAN_DRIVER=1) ;;
    m1) shim=asahi driver=asahi ;;
    adreno) shim=freedreno driver=freedreno variables=(FD_GPU_ID=740) ;;
    esac
    env "${variables[@]}" VK_ICD_FILENAMES="$root/usr/share/vulkan/icd.d/${driver}_icd.json" MESA_SHADER_CACHE_DISABLE=true \
        "$lib/ld-linux-x86-64.so.2" --library-path "$lib" --preload "$lib/lib${shim}_noop_drm_shim.so" "$@"
}

pipelines=$cache/pipelines
rm -rf "$pipelines"
cargo run --quiet --locked --example dump_pipelines -- "$pipelines"
cc -O1 -Wall -I "$root/usr/include" -o "$cache/compile" scripts/gpu-static/compile.c -ldl
mesa=$(zcat "$root/usr/share/doc/mesa-vulkan-drivers/changelog.Debian.gz" | sed -n '1s/.*(\(.*\)).*/\1/p')

# A line of the table for each line of compile's output: what the drivers call differently, by one name.
table() {
    awk -F '\t' -v OFS=, -v target="$1" '
        NR == FNR { runs_on[$1] = $4; next }
        function of(names, i, n, list) {
            n = split(names, list, "|")
            for (i = 1; i <= n; i++) if (list[i] in value) return value[list[i]]
            return ""
        }
        {
            split("", value)
            for (i = 3; i <= NF; i++) {
                at = index($i, "=")
                value[substr($i, 1, at - 1)] = substr($i, at + 1)
            }
            sub(/\.spv$/, "", $2)
            print target, $2, runs_on[$2], $1, of("subgroup size"), of("VGPRs|Number of GPRs|GPRs|Registers used"),
                of("Spilled VGPRs|Spills to memory|Spills|STP Count"),
                of("Subgroups per SIMD|Max warps/SM|Threads|Max Waves Per Core"), of("LDS size"),
                of("Instructions|Instruction count|Instruction Count")
        }' "$pipelines/pipelines.tsv" -
}

csv=$cache/static.csv
echo "target,pipeline,runs_on,status,subgroup_size,registers,spills,occupancy,workgroup_bytes,instructions" >"$csv"
given=$(wc -l <"$pipelines/pipelines.tsv")
status=0
counts=$cache/counts.md
{
    echo "| target | compile | fail | run on GPUs and spill registers | run elsewhere and spill registers |"
    echo "|---|---|---|---|---|"
} >"$counts"
echo "Mesa $mesa, $given pipelines:"
for target in "${targets[@]}"; do
    : >"$cache/$target.tsv"
    # A compiler that crashes takes the process with it, so that the rest is begun anew behind the culprit.
    files=("$pipelines"/*.spv)
    files=("${files[@]##*/}")
    while ((${#files[@]} > 0)); do
        done_before=$(wc -l <"$cache/$target.tsv")
        (cd "$pipelines" && on "$target" "$cache/compile" "${files[@]}") >>"$cache/$target.tsv" 2>"$cache/$target.log" || true
        answered=$(($(wc -l <"$cache/$target.tsv") - done_before))
        if ((answered == 0)) && grep -q '^error:' "$cache/$target.log"; then
            fail "$target: $(grep -m 1 '^error:' "$cache/$target.log" | cut -c 8-)"
        fi
        if ((answered < ${#files[@]})); then
            printf 'failed\t%s\tcrash=1\n' "${files[answered]}" >>"$cache/$target.tsv"
            answered=$((answered + 1))
        fi
        files=("${files[@]:answered}")
    done
    table "$target" <"$cache/$target.tsv" >>"$csv"
    compiled=$(grep -c "^ok" "$cache/$target.tsv") || true
    spilling=$(awk -F , -v target="$target" '
        $1 == target && $7 > 0 { count[$3]++ } END { print count["gpus"] + 0, count["others"] + 0 }' "$csv")
    echo "| $target | $compiled | $((given - compiled)) | ${spilling% *} | ${spilling#* } |" >>"$counts"
    echo "$target: $compiled compile, $((given - compiled)) fail, ${spilling% *} that GPUs run and ${spilling#* } others spill registers"
    if ((compiled < given)); then
        status=1
        grep "^failed" "$cache/$target.tsv" | sed 's/^/    /' >&2
    fi
done

# Lines of what became worse for GPUs since the newest table.
worse() {
    awk -F , '
        NR == FNR { spills[$1, $2] = $7; occupancy[$1, $2] = $8; next }
        $3 == "gpus" && ($1, $2) in spills {
            if ($7 > spills[$1, $2]) printf "    %s: %s spills %d, and spilled %d\n", $1, $2, $7, spills[$1, $2]
            if ($8 < occupancy[$1, $2]) printf "    %s: %s has an occupancy of %d, and had %d\n", $1, $2, $8, occupancy[$1, $2]
        }' "$1" "$csv"
}
newest=$(find benches/static -name '*.csv' | sort | tail -n 1)
if [[ -z $write && -n $newest ]]; then
    found=$(worse "$newest")
    if [[ -n $found ]]; then
        printf 'error: worse than in %s:\n%s\n' "$newest" "$found" >&2
        status=1
    else
        echo "No pipeline that GPUs run is worse than in $newest."
    fi
fi
if [[ -n $write ]]; then
    mkdir -p benches/static
    cp "$csv" "benches/static/$(date -u +%F).csv"
    {
        sed '/<!-- static -->/q' docs/shaders.md
        echo
        echo "\`scripts/check-static.sh --write ${targets[*]}\` on $(date -u +%F), $given pipelines, Mesa $mesa:"
        echo
        cat "$counts"
        echo
        sed -n '/<!-- end of static -->/,$p' docs/shaders.md
    } >"$cache/shaders.md"
    mv "$cache/shaders.md" docs/shaders.md
    echo "benches/static/$(date -u +%F).csv and docs/shaders.md are written"
fi
exit $status
