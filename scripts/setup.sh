# Sourced by the other scripts. Makes sure of what building and running take: cargo, a linker, and, on Linux, the Vulkan
# loader with a driver. Installs what is missing where apt-get can, says what to install elsewhere, and is silent where
# nothing is missing.

fail() {
    echo "error: $1" >&2
    exit 1
}

has_loader() {
    local dir paths=${LD_LIBRARY_PATH:-}
    for dir in ${paths//:/ } /usr/local/lib /usr/lib64 /usr/lib "/usr/lib/$(uname -m)-linux-gnu"; do
        if [[ -e $dir/libvulkan.so.1 ]]; then return 0; fi
    done
    # On Debian it is not on a user's path.
    PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null | grep -F libvulkan.so.1 >/dev/null
}

has_driver() {
    local dir
    # Whoever names a driver knows better.
    if [[ -n ${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-} ]]; then return 0; fi
    for dir in /usr/share /usr/local/share /etc /run/opengl-driver/share "${XDG_DATA_HOME:-${HOME:-}/.local/share}"; do
        if compgen -G "$dir/vulkan/icd.d/*.json" >/dev/null; then return 0; fi
    done
    return 1
}

install_missing() {
    local packages=() root=()
    has_loader || packages+=(libvulkan1)
    has_driver || packages+=(mesa-vulkan-drivers)
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    if ((${#packages[@]} == 0)); then return; fi

    local wanted="a C compiler to link with, the Vulkan loader (libvulkan.so.1), and a Vulkan driver: your GPU's own, or \
Mesa's lavapipe, which computes on the CPU (Debian and Ubuntu: gcc libc6-dev libvulkan1 mesa-vulkan-drivers; Fedora: gcc \
vulkan-loader mesa-vulkan-drivers; Arch: gcc vulkan-icd-loader vulkan-swrast)"
    command -v apt-get >/dev/null || fail "something is missing. Please install $wanted"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || fail "missing: ${packages[*]}. As root, run: apt-get install ${packages[*]}"
        root=(sudo)
    fi
    echo "Installing ${packages[*]} ..."
    # Package lists that are out of date, or not there at all, are the usual reason for a failure.
    "${root[@]}" apt-get update -qq >/dev/null &&
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null ||
        fail "apt-get could not install ${packages[*]}. Thawline needs $wanted"
}

# A Rust that rustup installed a minute ago is not on the path of this shell yet.
if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo ]]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi
command -v cargo >/dev/null || fail "cargo was not found. Install Rust 1.90 or newer from https://rustup.rs"

# macOS and Windows bring Metal and DirectX 12.
if [[ $(uname -s) == Linux ]]; then install_missing; fi
