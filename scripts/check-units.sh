#!/usr/bin/env bash
# Holds the systemd units to what they promise: valid, and an exposure score below 2.5 of 10 (lower is better).
# Does nothing on machines without systemd's tools.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

HIGHEST_EXPOSURE=25 # in tenths

command -v systemd-analyze >/dev/null || exit 0

# A unit is only valid where its program and user exist; this one stands in for them.
scratch=$(mktemp --directory)
trap 'rm -rf "$scratch"' EXIT
for unit in systemd/*.service; do
    sed "s|^ExecStart=/usr/bin/outboxd|ExecStart=/bin/true|" "$unit" >"$scratch/$(basename "$unit")"
done
cp "$scratch/outboxd-consumer@.service" "$scratch/outboxd-consumer@orders.service"
problems=$(systemd-analyze verify --man=no "$scratch/outboxd-producer.service" "$scratch/outboxd-consumer@orders.service" 2>&1 |
    grep "$scratch\|outboxd" | grep -v "service type, ignoring: notify-reload" || true)
if [[ -n $problems ]]; then
    echo "systemd finds fault with the units:" >&2
    echo "$problems" >&2
    exit 1
fi

for unit in outboxd-producer.service outboxd-consumer@orders.service; do
    if ! report=$(systemd-analyze security --offline=true --threshold="$HIGHEST_EXPOSURE" "$scratch/$unit" 2>&1); then
        echo "$report" >&2
        exit 1
    fi
done
