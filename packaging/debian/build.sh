#!/usr/bin/env bash
# Builds the Debian package into target/debian and prints its path; with --no-build, of the program that is built already.
#
# PROFILE=release (the default) or dev, which is quick and large.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PROFILE=${PROFILE:-release}
made=target/packaging
cargo_deb=target/cargo-deb/bin/cargo-deb
[[ -x $cargo_deb ]] || {
    echo "$cargo_deb is missing: run \`make cargo-deb\`" >&2
    exit 1
}

[[ ${1:-} == --no-build ]] || cargo build --quiet --locked --profile "$PROFILE" --bin outboxd >&2
folder=$([[ $PROFILE == dev ]] && echo debug || echo "$PROFILE")
outboxd=target/$folder/outboxd

# What the program says of itself.
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
"$outboxd" man --directory "$made/man"
for shell in bash zsh fish; do
    "$outboxd" completions "$shell" >"$made/completions/outboxd.$shell"
done

compression=()
[[ $PROFILE != dev ]] || compression=(--fast)
rm -rf target/debian
"$cargo_deb" deb "${compression[@]}" --quiet --locked --no-build --profile "$PROFILE" --output target/debian/ >&2
echo target/debian/outboxd_*.deb
