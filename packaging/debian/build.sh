#!/usr/bin/env bash
# Builds the Debian package into target/debian and prints its path.
#
# PROFILE=release (the default) or dev, which is quick and large.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PROFILE=${PROFILE:-release}
CARGO_DEB_VERSION=3.8.0
tools=$PWD/target/tools
made=target/packaging

if ! command -v cargo-deb >/dev/null && [[ ! -x $tools/bin/cargo-deb ]]; then
    echo "Building cargo-deb $CARGO_DEB_VERSION" >&2
    cargo install --quiet --locked --version "$CARGO_DEB_VERSION" --root "$tools" cargo-deb >&2
fi
export PATH=$PATH:$tools/bin

cargo build --quiet --locked --profile "$PROFILE" --bin outboxd >&2
folder=$([[ $PROFILE == dev ]] && echo debug || echo "$PROFILE")
outboxd=target/$folder/outboxd

# What the program says of itself.
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
"$outboxd" man --directory "$made/man"
for shell in bash zsh fish; do
    "$outboxd" completions "$shell" >"$made/completions/outboxd.$shell"
done

cargo deb --quiet --locked --no-build --profile "$PROFILE" --output target/debian/ >&2
ls -t target/debian/outboxd_*.deb | head --lines=1
