#!/usr/bin/env bash
# Loads a page in headless Chromium and takes pictures of it, to be looked at.
#
#     scripts/check-page.sh PAGE.html FOLDER
#
# Fails if the page says anything on the console, asks for another file, or is wider than a phone. FOLDER gets light.png,
# dark.png, phone.png and print.pdf. Exits with 3 if there is no Chromium.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit "${2:-1}"
}

(($# == 2)) || fail "usage: scripts/check-page.sh PAGE.html FOLDER"
[[ -f $1 ]] || fail "$1: there is no such file"
page=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")

browser=
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then
        browser=$name
        break
    fi
done
[[ -n $browser ]] || fail "no browser: install chromium or google-chrome" 3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Console messages go to standard error, and so does whatever cannot be loaded: no name can be resolved.
chrome() {
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
        --user-data-dir="$work/profile" --host-resolver-rules="MAP * ~NOTFOUND" --hide-scrollbars \
        --enable-logging=stderr "$@" 2>"$work/log"
    if grep CONSOLE "$work/log" >&2; then fail "$page: the browser's console is not empty"; fi
}

# A frame is as narrow as it is asked to be; windows are not.
frame() {
    local script='const d = this.contentDocument.documentElement;
        document.title = `size ${d.scrollWidth} ${d.scrollHeight}`'
    cat >"$work/frame.html" <<<"<body style='margin: 0'><iframe src='file://$page' onload='$script'
        style='border: 0; width: $1px; height: ${2}px'></iframe>"
}

# Lets a frame be looked into.
framed=(--allow-file-access-from-files "file://$work/frame.html")

# The page's width and height, where it has $1 pixels.
size() {
    frame "$1" 800
    chrome --dump-dom "${framed[@]}" | sed -n 's/.*<title>size \(.*\)<\/title>.*/\1/p'
}

# Pictures may be in the page itself.
sed 's/<img src="data:image/<picture /g' "$page" >"$work/bare"
grep -Eiq '<(script|link|img|iframe|object|embed)[ >]|@import|url\(' "$work/bare" && fail "$page asks for something else"
wide=$(size 1120)
narrow=$(size 390)
[[ -n $wide && -n $narrow ]] || fail "$page does not load"
read -r width height <<<"$wide"
read -r narrow long <<<"$narrow"
((narrow <= 390)) || fail "$page is $narrow pixels wide where there are 390"

# The setting is Chromium's own: 0 is dark, 1 is light.
picture() {
    chrome --blink-settings="preferredColorScheme=$3" --window-size="$2" --screenshot="$out/$1.png" "${@:4}"
    [[ -s $out/$1.png ]] || fail "$out/$1.png: no picture"
}

picture light "$width,$height" 1 "file://$page"
picture dark "$width,$height" 0 "file://$page"
frame 390 "$long"
picture phone "390,$long" 1 "${framed[@]}"
chrome --no-pdf-header-footer --print-to-pdf="$out/print.pdf" "file://$page"
[[ -s $out/print.pdf ]] || fail "$out/print.pdf: nothing was printed"
echo "$page: $width × $height pixels; $narrow × $long on a phone"
