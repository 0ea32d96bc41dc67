#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks, from Debian's packages, and says what.
# Says nothing if nothing is missing.
set -euo pipefail

OLDEST_POSTGRES=15
CLUSTER_SETTINGS=/etc/postgresql-common/createcluster.conf

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

has_postgres() {
    local bin version
    for bin in /usr/lib/postgresql/*/bin; do
        version=$(basename "$(dirname "$bin")")
        if [[ $version =~ ^[0-9]+$ && -x $bin/initdb ]] && ((version >= OLDEST_POSTGRES)); then
            return 0
        fi
    done
    return 1
}

missing_packages() {
    has cc && has c++ || echo g++
    has make || echo make
    has pkg-config || echo pkg-config
    [[ -e /usr/include/openssl/ssl.h ]] || echo libssl-dev
    [[ -e /usr/include/zlib.h ]] || echo zlib1g-dev
    has java || echo default-jre-headless
    has chromium || echo chromium
    has mvn || echo maven
    has_postgres || echo postgresql
    [[ -x /usr/sbin/pgbouncer ]] || echo pgbouncer
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
    has dpkg-shlibdeps || echo dpkg-dev
    has systemd-sysusers || echo systemd-standalone-sysusers
    has systemd-tmpfiles || echo systemd-standalone-tmpfiles
    ((EUID == 0)) || has fakeroot || echo fakeroot
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet --quiet --yes \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# Debian's package makes a cluster of its own and starts it on port 5432, which nobody asked for here. The machine's own
# setting is put back afterwards.
install_postgres() {
    apt_get install --no-install-recommends postgresql-common
    as_root cp --preserve "$CLUSTER_SETTINGS" "$CLUSTER_SETTINGS.before-outboxd"
    trap 'as_root mv "$CLUSTER_SETTINGS.before-outboxd" "$CLUSTER_SETTINGS"' EXIT
    echo 'create_main_cluster = false' | as_root tee -a "$CLUSTER_SETTINGS" >/dev/null
    apt_get install --no-install-recommends postgresql
    has_postgres || fail "Debian's package brought a PostgreSQL older than $OLDEST_POSTGRES: install a newer one, e.g. from" \
        "the PostgreSQL project's own packages for Debian, and run this again."
}

# Its service is not wanted either: the tests start their own.
install_pgbouncer() {
    apt_get install --no-install-recommends pgbouncer
    as_root invoke-rc.d --quiet pgbouncer stop || true
    as_root update-rc.d pgbouncer disable
}

has cargo || fail "Rust's cargo is missing. Install it as https://rustup.rs says, open a new shell, and run this again."

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} == 0)); then
    exit 0
fi

has apt-get || fail "Missing: ${missing[*]} (Debian's names). Install them in this system's own way, and run this again."
((EUID == 0)) || has sudo || fail "Missing: ${missing[*]}. Run 'apt-get install ${missing[*]}' as root, and run this again."

echo "Installing: ${missing[*]}"
apt_get update
for package in "${missing[@]}"; do
    case $package in
        postgresql) install_postgres ;;
        pgbouncer) install_pgbouncer ;;
        *) apt_get install --no-install-recommends "$package" ;;
    esac
done
