#!/usr/bin/env bash
# Installs, upgrades, removes and purges the package in a scratch root, and looks at what is there after each step.
#
#     packaging/debian/check.sh target/debian/outboxd_0.1.0-1_amd64.deb
#
# Needs root, or fakeroot, but no container: `dpkg --root` with maintainer scripts that honour DPKG_ROOT.
set -euo pipefail
((EUID == 0)) || exec fakeroot "$0" "$@"

package=$(realpath "${1:?the package}")
root=$(mktemp --directory)
trap 'rm -rf "$root"' EXIT

fail() {
    echo "$package: $*" >&2
    exit 1
}

# dpkg looks for programs that its scripts call in the host's PATH; what the package depends on is the host's.
run_dpkg() {
    dpkg --root="$root" --force-script-chrootless --force-depends --force-not-root "$@" >"$root/dpkg.log" 2>&1 ||
        fail "dpkg $*: $(cat "$root/dpkg.log")"
}

there() {
    local path
    for path in "$@"; do
        [[ -e $root/$path ]] || fail "/$path is missing"
    done
}

gone() {
    local path
    for path in "$@"; do
        [[ ! -e $root/$path ]] || fail "/$path is still there"
    done
}

mode_is() {
    [[ $(stat --format=%a "$root/$1") == "$2" ]] || fail "/$1 has mode $(stat --format=%a "$root/$1"), not $2"
}

mkdir -p "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/info" "$root/etc" "$root/usr/lib/sysusers.d"
touch "$root/var/lib/dpkg/status" "$root/var/lib/dpkg/available"

run_dpkg --install "$package"
config=etc/outboxd/outboxd.toml
units="usr/lib/systemd/system/outboxd-producer.service usr/lib/systemd/system/outboxd-consumer@.service"
there usr/bin/outboxd $config $units usr/lib/sysusers.d/outboxd.conf usr/lib/tmpfiles.d/outboxd.conf \
    usr/share/man/man1/outboxd.1.gz usr/share/man/man1/outboxd-groups-forget.1.gz \
    usr/share/bash-completion/completions/outboxd usr/share/zsh/vendor-completions/_outboxd \
    usr/share/fish/vendor_completions.d/outboxd.fish usr/share/doc/outboxd/copyright
grep --quiet '^outboxd:' "$root/etc/passwd" || fail "there is no user outboxd"
mode_is etc/outboxd 750
mode_is $config 640

# It runs, and the configuration that it brings is valid.
"$root/usr/bin/outboxd" --version | grep --quiet '^outboxd ' || fail "it does not run"
"$root/usr/bin/outboxd" config check --config "$root/$config" >/dev/null || fail "its configuration is not valid"
gzip --test "$root"/usr/share/man/man1/*.gz
bash -n "$root/usr/share/bash-completion/completions/outboxd"

# An operator's change outlives an upgrade and a removal, and not a purge.
echo '# ours' >>"$root/$config"
run_dpkg --install "$package"
grep --quiet '^# ours' "$root/$config" || fail "an upgrade has overwritten /$config"
run_dpkg --remove outboxd
gone usr/bin/outboxd $units usr/share/man/man1/outboxd.1.gz usr/share/doc/outboxd
grep --quiet '^# ours' "$root/$config" || fail "a removal has taken /$config"
run_dpkg --purge outboxd
gone $config etc/outboxd

echo "$(basename "$package"): installed, upgraded, removed and purged"
