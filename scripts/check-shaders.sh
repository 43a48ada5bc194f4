#!/usr/bin/env bash
# Hands every pipeline that the plans of four networks ask for to the compilers that browsers and drivers have:
#
#   tint        Chromium's, from the npm package `webgpu`
#   spirv-val   the SPIR-V validator
#   glslang     the GLSL reference compiler, as OpenGL ES 3.1 and as desktop 4.50
#   dxc         Microsoft's for DirectX 12, shader models 6.0 and 6.6; in Wine, from the npm package
#   fxc         Microsoft's older one, shader model 5.1, without the subgroup kernels; takes two minutes
#   msl         no compiler: only naga's translation to Metal's language, which no other system can compile
#
#   scripts/check-shaders.sh [--write] [CHECKER…]     # all of them, if none is named
#
# Everything is kept in target/check-shaders. What is missing is installed by npm or apt-get where they can, else the checker
# is skipped, and the reason said. Prints a table, which --write puts into docs/shaders.md. Exit code 1 if something is
# rejected.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

write=
checkers=()
for argument in "$@"; do
    case $argument in
    --write) write=1 ;;
    tint | spirv-val | glslang | dxc | fxc | msl) checkers+=("$argument") ;;
    *) fail "there is no checker $argument: name some of tint, spirv-val, glslang, dxc, fxc, msl" ;;
    esac
done
if ((${#checkers[@]} == 0)); then checkers=(tint spirv-val glslang dxc fxc msl); fi

cache=$PWD/target/check-shaders
pipelines=$cache/pipelines
mkdir -p "$cache"
rm -rf "$pipelines" "$cache"/*.txt
cargo run --quiet --locked --example dump_pipelines -- "$pipelines"

# Whether a command is there, or a Debian package brings it.
have() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    command -v apt-get >/dev/null || return 1
    local root=()
    if ((EUID != 0)); then
        # Asking for a password would stop a script that nobody watches.
        sudo -n true 2>/dev/null || return 1
        root=(sudo -n)
    fi
    echo "Installing $* ..." >&2
    "${root[@]}" apt-get update -qq >/dev/null 2>&1 || true
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
    command -v "$command" >/dev/null
}

# Says why a checker cannot run.
skip() {
    echo "$1 is skipped: $2" >&2
    echo "skipped: $2" >"$cache/$1.version"
}

# The npm package with Dawn and Microsoft's compilers.
webgpu=$cache/node_modules/webgpu
have_webgpu() {
    [[ -e $webgpu/package.json ]] && return
    command -v npm >/dev/null || return 1
    npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix "$cache" webgpu >/dev/null 2>&1
}

webgpu_version() {
    sed -n 's/.*"version": "\(.*\)".*/\1/p' "$webgpu/package.json" | head -n 1
}

# Runs a command on each file given on standard input; its output is shown of those that it rejects.
each() {
    local file output
    while read -r file; do
        if output=$("$@" "$file" 2>&1 </dev/null); then
            echo "ok $file"
        else
            echo "rejected $file: $(grep -iE 'error' <<<"$output" | head -n 1 || head -n 1 <<<"$output")"
        fi
    done
}

# Files of the pipelines, by extension.
files() {
    (cd "$pipelines" && for extension in "$@"; do ls | grep -F ".$extension"; done)
}

# Entry points and shader models of the HLSL files, as hlsl.exe reads them.
hlsl_list() {
    local model name entry
    for model in "$@"; do
        while IFS=$'\t' read -r name _ entry _; do
            if [[ -e $pipelines/$name.$model.hlsl ]]; then echo "$name.$model.hlsl $entry cs_$model"; fi
        done <"$pipelines/pipelines.tsv"
    done
}

# Compiles HLSL by one of Microsoft's compilers.
hlsl() {
    local checker=$1 dll=$2
    shift 2
    if ! have_webgpu; then skip "$checker" "npm cannot install the package webgpu, which holds $dll" && return; fi
    if ! have x86_64-w64-mingw32-gcc gcc-mingw-w64-x86-64-posix || ! have wine wine wine64; then
        skip "$checker" "there is no Wine or no mingw-w64 (Debian: wine wine64 gcc-mingw-w64-x86-64-posix)" && return
    fi
    echo "$dll of webgpu $(webgpu_version), $(wine --version 2>/dev/null | grep -o 'wine-[0-9.]*')" >"$cache/$checker.version"
    x86_64-w64-mingw32-gcc -O1 -Wall -o "$pipelines/hlsl.exe" scripts/shaders/hlsl.c
    cp "$webgpu/dist/win32-x64/$dll" "$pipelines"
    # Wine has a d3dcompiler_47 of its own.
    (cd "$pipelines" && WINEPREFIX=$cache/wine WINEDEBUG=-all WINEDLLOVERRIDES=d3dcompiler_47=n \
        wine hlsl.exe "$checker" < <(hlsl_list "$@") 2>"$cache/$checker.log" | tr -d '\r') >"$cache/$checker.txt" ||
        echo "rejected: $checker: $(grep -F error: "$cache/$checker.log" | head -n 1)" >>"$cache/$checker.txt"
}

check() {
    case $1 in
    tint)
        if ! command -v node >/dev/null; then skip tint "there is no node" && return; fi
        if ! have_webgpu; then skip tint "npm cannot install the package webgpu" && return; fi
        echo "Dawn of webgpu $(webgpu_version)" >"$cache/tint.version"
        # What it has not come to counts as rejected.
        node scripts/shaders/tint.mjs "$webgpu" "$pipelines" >"$cache/tint.txt" || true
        ;;
    spirv-val)
        if ! have spirv-val spirv-tools; then skip spirv-val "there is no spirv-val (Debian: spirv-tools)" && return; fi
        spirv-val --version | sed -n '1s/ unknown hash.*//;1s/,.*//;1p' >"$cache/spirv-val.version"
        files spv | (cd "$pipelines" && each spirv-val --target-env vulkan1.3) >"$cache/spirv-val.txt"
        ;;
    glslang)
        if ! have glslangValidator glslang-tools; then
            skip glslang "there is no glslangValidator (Debian: glslang-tools)" && return
        fi
        glslangValidator --version | sed -n '1s/.*:/glslang /p' >"$cache/glslang.version"
        files 310es.comp 450.comp | (cd "$pipelines" && each glslangValidator -S comp) >"$cache/glslang.txt"
        ;;
    dxc) hlsl dxc dxcompiler.dll 6_0 6_6 ;;
    fxc) hlsl fxc d3dcompiler_47.dll 5_1 ;;
    msl)
        # dump_pipelines would have failed.
        echo "naga $(sed -n '/^name = "naga"$/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock), translated only" >"$cache/msl.version"
        files metal | sed 's/^/ok /' >"$cache/msl.txt"
        ;;
    esac
}

# What a checker has to be given.
wanted() {
    case $1 in
    tint) files wgsl ;;
    spirv-val) files spv ;;
    glslang) files 310es.comp 450.comp ;;
    dxc) files 6_0.hlsl 6_6.hlsl ;;
    fxc) files 5_1.hlsl ;;
    msl) files metal ;;
    esac | wc -l
}

table=$cache/table.md
status=0
{
    echo "| checker | version | given | accepted | rejected |"
    echo "|---|---|---|---|---|"
} >"$table"
for checker in "${checkers[@]}"; do
    rm -f "$cache/$checker.version"
    started=$SECONDS
    check "$checker"
    version=$(<"$cache/$checker.version")
    if [[ $version == skipped:* ]]; then
        echo "| $checker | $version | – | – | – |" >>"$table"
        continue
    fi
    given=$(wanted "$checker")
    accepted=$(grep -c '^ok ' "$cache/$checker.txt") || true
    rejected=$((given - accepted))
    echo "| $checker | $version | $given | $accepted | $rejected |" >>"$table"
    echo "$checker: $accepted of $given in $((SECONDS - started)) s"
    if ((rejected > 0)); then
        status=1
        grep '^rejected' "$cache/$checker.txt" | head -n 20 >&2 || true
        # A compiler that died says nothing of the rest.
        answers=$(grep -c '^ok \|^rejected ' "$cache/$checker.txt") || true
        if ((answers < given)); then echo "error: $checker ended after $answers of $given" >&2; fi
    fi
done

echo
cat "$table"
if [[ -n $write ]]; then
    {
        sed '/<!-- checks -->/q' docs/shaders.md
        echo
        echo "\`scripts/check-shaders.sh --write ${checkers[*]}\` on $(date -u +%F), $(wc -l <"$pipelines/pipelines.tsv") pipelines:"
        echo
        cat "$table"
        echo
        sed -n '/<!-- end of checks -->/,$p' docs/shaders.md
    } >"$cache/shaders.md"
    mv "$cache/shaders.md" docs/shaders.md
fi
exit $status
