# Sourced by check-backends.sh: what the backends need that a machine does not have. Everything is unpacked or built below
# $cache and kept there; nothing is installed. Debian's packages make small systems of their own, in which commands run by
# chroot, so that the drivers are the same on every host. Needs apt-get, and root or user namespaces.

cache=$(realpath -m "${THAWLINE_CHECK_CACHE:-target/cross}")
mkdir -p "$cache"

# Says why something cannot run here; the caller's check is then skipped with the reason.
cannot() {
    echo "$1" >"$cache/reason"
    return 1
}

# debian NAME SUITE PACKAGE…: a system of these packages and all that they depend on, in $cache/NAME.
debian() {
    local root=$cache/$1 state=$cache/apt/$2 suite=$2 deb link
    shift 2
    [[ $(cat "$root/.packages" 2>/dev/null) == "$suite $*" ]] && return
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || { cannot "needs apt-get and dpkg"; return 1; }
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -e $keys ]] || { cannot "needs the package debian-archive-keyring"; return 1; }
    echo "unpacking $* of Debian $suite ..." >&2
    rm -rf "$root"
    mkdir -p "$root"/{dev,proc,sys,tmp,run} "$state/lists/partial" "$root.debs/archives/partial"
    # The mirror that the host uses, if it is of Debian.
    local mirror
    mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ') || true
    mirror=${mirror:-http://deb.debian.org/debian}
    mirror=${mirror%/}
    printf "deb [signed-by=$keys] %s main\n" "$mirror $suite" "$mirror-security $suite-security" >"$state/sources.list"
    # Nothing counts as installed.
    : >"$state/status"
    local apt=(apt-get -qq -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State=$state" -o "Dir::State::lists=$state/lists" -o "Dir::State::status=$state/status"
        -o "Dir::Cache=$root.debs" -o APT::Install-Recommends=false -o "APT::Sandbox::User=$(id -un)" -o Debug::NoLocking=1)
    "${apt[@]}" update && "${apt[@]}" install -y --download-only bash coreutils libc6 "$@" >&2 ||
        { cannot "the packages of Debian $suite could not be fetched"; return 1; }
    for deb in "$root.debs/archives"/*.deb; do dpkg -x "$deb" "$root" || return; done
    # What maintainer scripts would do, as far as it matters.
    for link in bin sbin lib lib64; do
        # Older packages have files there.
        if [[ -d $root/$link && ! -L $root/$link ]]; then
            mkdir -p "$root/usr/$link"
            cp -a "$root/$link/." "$root/usr/$link/"
            rm -r "${root:?}/$link"
        fi
        [[ -e $root/$link ]] || ln -s "usr/$link" "$root/$link"
    done
    ln -sf bash "$root/usr/bin/sh"
    [[ ! -e $root/usr/bin/gcc ]] || ln -sf gcc "$root/usr/bin/cc"
    # The compiler's name for it.
    [[ ! -e $root/usr/bin/lld ]] || ln -sf lld "$root/usr/bin/rust-lld"
    [[ ! -e $root/usr/bin/x86_64-w64-mingw32-gcc-posix ]] ||
        ln -sf x86_64-w64-mingw32-gcc-posix "$root/usr/bin/x86_64-w64-mingw32-gcc"
    for deb in "$root.debs/archives"/libwine_*.deb; do
        [[ -e $deb ]] || continue
        # It gives Wine a zlib.
        dpkg-deb --ctrl-tarfile "$deb" | tar -xO ./postinst | within "${root##*/}" bash -s configure || return
    done
    rm -r "$root.debs"
    echo "$suite $*" >"$root/.packages"
}

# within NAME [VARIABLE=VALUE]… COMMAND…: runs a command in such a system. It sees this checkout, the cache, /tmp, cargo's
# registry and the network, and of the environment nothing but what is named.
within() {
    local root=$cache/$1 cargo=${CARGO_HOME:-$HOME/.cargo} user=()
    shift
    ((EUID == 0)) || user=(--map-root-user)
    # shellcheck disable=SC2016 # The inner shell expands them.
    unshare "${user[@]}" --mount bash -c '
        set -e
        root=$1 folder=$2 cargo=$3 cache=$4
        shift 4
        for shared in /proc /dev /sys /tmp "$folder" "$cache" "$cargo"; do
            mkdir -p "$root$shared"
            mount --rbind "$shared" "$root$shared"
        done
        for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
            [[ -e $file ]] || continue
            mkdir -p "$root${file%/*}"
            touch "$root$file"
            mount --bind "$(realpath "$file")" "$root$file"
        done
        exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/usr/sbin LANG=C.UTF-8 HOME=/tmp XDG_RUNTIME_DIR=/tmp \
            CARGO_HOME="$cargo" /usr/bin/bash -c '\''cd "$0" && exec env "$@"'\'' "$folder" "$@"
    ' bash "$root" "$PWD" "$cargo" "$cache" "$@"
}

drivers=(mesa-vulkan-drivers libvulkan1 vulkan-validationlayers)

bookworm() { debian bookworm bookworm "${drivers[@]}"; }

# Of libc-bin is the locale C.UTF-8, by which Wine reads names that are no ASCII.
trixie() { debian trixie trixie "${drivers[@]}" libc-bin libegl1 libgles2 libgl1-mesa-dri chromium wine64 xvfb; }

forky() { debian forky forky "${drivers[@]}"; }

toolchain() {
    debian toolchain forky rustc cargo rust-src libstd-rust-dev-wasm32 gcc libc6-dev lld gcc-mingw-w64-x86-64-posix
}

deno() {
    deno=$cache/deno/node_modules/@deno/linux-x64-glibc/deno
    [[ -x $deno ]] && return
    command -v npm >/dev/null || { cannot "Deno needs npm to be fetched"; return 1; }
    npm install --silent --no-save --ignore-scripts --prefix "$cache/deno" deno >&2 || { cannot "npm could not fetch Deno"; return 1; }
}

# The tool that makes a module for browsers of what the compiler wrote, of the version that the crate was compiled with.
wasm_bindgen() {
    local version
    version=$(sed -n '/^name = "wasm-bindgen"$/{n;s/version = "\(.*\)"/\1/p}' tests/web/Cargo.lock)
    wasm_bindgen=$cache/wasm-bindgen-$version/bin/wasm-bindgen
    [[ -x $wasm_bindgen ]] && return
    echo "building wasm-bindgen $version ..." >&2
    cargo install --quiet wasm-bindgen-cli --version "$version" --root "${wasm_bindgen%/bin/*}" >&2 ||
        { cannot "cargo could not build wasm-bindgen-cli $version"; return 1; }
}

# The test page's module, in $page.
page() {
    page=$cache/page
    toolchain && wasm_bindgen || return
    within toolchain "CARGO_TARGET_DIR=$cache/build" cargo build --quiet --locked --manifest-path tests/web/Cargo.toml \
        --target wasm32-unknown-unknown >&2 || { cannot "the test page does not compile"; return 1; }
    rm -rf "$page"
    "$wasm_bindgen" --target web --out-dir "$page" "$cache/build/wasm32-unknown-unknown/debug/thawline_web_test.wasm" >&2
}

# The command line for Windows, in $windows. Debian has no compiled standard library for it, so it is compiled, too.
windows() {
    windows=$cache/build/x86_64-pc-windows-gnu/debug/thawline.exe
    toolchain || return
    within toolchain "CARGO_TARGET_DIR=$cache/build" RUSTC_BOOTSTRAP=1 cargo build --quiet --locked --bin thawline \
        --target x86_64-pc-windows-gnu -Zbuild-std=std,panic_abort >&2 ||
        { cannot "the command line does not compile for Windows"; return 1; }
}
