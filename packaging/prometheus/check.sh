#!/usr/bin/env bash
# Holds the alerts to what promtool makes of them and to their own tests, and every query of the dashboard to PromQL's grammar.
#
# Takes promtool from the PATH, or from Debian's package prometheus, without installing it: that would start a server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

tools=target/tools/prometheus

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

fetch() {
    (cd "$tools" && apt-get download --quiet --quiet prometheus && dpkg-deb --extract prometheus_*.deb .) 2>/dev/null
}

if command -v promtool >/dev/null; then
    promtool=promtool
else
    promtool=$PWD/$tools/usr/bin/promtool
    if [[ ! -x $promtool ]]; then
        echo "Fetching promtool"
        mkdir -p "$tools"
        fetch || { as_root apt-get update --quiet --quiet && fetch; } || {
            echo "promtool is missing: install the package prometheus" >&2
            exit 1
        }
    fi
fi

"$promtool" check rules packaging/prometheus/alerts.yml
"$promtool" test rules packaging/prometheus/alerts.test.yml

# A query of the dashboard is a recording rule without its variables.
queries=$(mktemp --suffix .yml)
trap 'rm -f "$queries"' EXIT
python3 - >"$queries" <<'PYTHON'
import json

def expressions(node):
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        for value in node.values():
            yield from expressions(value)
    elif isinstance(node, list):
        for value in node:
            yield from expressions(value)

with open("packaging/grafana/outboxd.json") as file:
    found = list(expressions(json.load(file)))
assert len(found) > 20, f"{len(found)} queries"
rules = [{"record": f"dashboard:query_{n}", "expr": text.replace("$__rate_interval", "5m")} for n, text in enumerate(found)]
print(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
PYTHON
"$promtool" check rules "$queries" | sed 's|^Checking .*|Checking the queries of packaging/grafana/outboxd.json|'
