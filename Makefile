# `make help` lists what there is.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

# Where rustup puts cargo, for shells that were opened before it was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin

KAFKA_VERSION := $(shell sed -n 's|.*<kafka.version>\(.*\)</.*|\1|p' tests/services/pom.xml)
KAFKA_LIB := target/kafka/$(KAFKA_VERSION)/lib
PEERS_LIB := target/peers/lib

# Tests wait for daemons more than they work.
TEST_THREADS ?= $(shell expr $$(nproc) + 1)
SCHEMATHESIS := target/schemathesis
CARGO_DEB := target/cargo-deb
CARGO_DEB_VERSION := 3.8.0

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is missing on a Debian machine; quiet if nothing is
	@scripts/setup.sh

.PHONY: kafka
kafka: $(KAFKA_LIB)/.complete ## Fetch the Kafka broker that the tests run against

# Fetches what a pom names into the target's folder: $(call fetch,pom,what it is)
define fetch
@echo "Fetching $(2)"
rm -rf $(@D)
mvn --quiet --batch-mode --file $(1) dependency:copy-dependencies -DoutputDirectory="$(CURDIR)/$(@D)"
touch $@
endef

$(KAFKA_LIB)/.complete: tests/services/pom.xml | setup
	$(call fetch,$<,Kafka $(KAFKA_VERSION))

.PHONY: schemathesis
schemathesis: $(SCHEMATHESIS)/.complete ## Fetch the fuzzer of OpenAPI services that the API is held against

$(SCHEMATHESIS)/.complete: tests/services/requirements.txt | setup
	@echo "Fetching schemathesis"
	rm -rf $(@D)
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

.PHONY: cargo-deb
cargo-deb: $(CARGO_DEB)/.complete ## Fetch and build what makes the Debian package

$(CARGO_DEB)/.complete: Makefile | setup
	@echo "Building cargo-deb $(CARGO_DEB_VERSION)"
	cargo install --quiet --locked --version $(CARGO_DEB_VERSION) --root $(CARGO_DEB) cargo-deb
	touch $@

.PHONY: build
build: setup ## Build the release binary, target/release/outboxd
	@cargo build --release --locked

.PHONY: demo
demo: build ## See it work: Postgres, a Kafka in the process, messages from end to end
	@target/release/outboxd dev --demo

.PHONY: record
record: build ## Record the demo anew, for the picture in the README
	@scripts/record-terminal.py docs/images/terminal.svg target/release/outboxd dev --demo

.PHONY: lint
lint: setup alerts ## Check form: rustfmt, clippy, units, alerts, and cargo-deny where it is installed
	@cargo fmt --check
	cargo clippy --locked --all-targets --features failpoints -- -D warnings
	scripts/check-units.sh
	if command -v cargo-deny >/dev/null; then cargo deny --locked check; fi

.PHONY: test
test: lint kafka schemathesis cargo-deb ## Run every test, against a real Postgres and a real Kafka
	@cargo test --locked --features failpoints -- --test-threads $(TEST_THREADS)

.PHONY: deb
deb: cargo-deb ## Build the Debian package; PROFILE=dev for a quick one
	@packaging/debian/build.sh

.PHONY: deb-check
deb-check: cargo-deb ## Build it, and install, upgrade, remove and purge it in a scratch root
	@packaging/debian/check.sh "$$(packaging/debian/build.sh)"

.PHONY: alerts
alerts: setup ## Hold alerts and dashboard against promtool and the metrics that there are
	@packaging/prometheus/check.sh

.PHONY: examples
examples: setup ## Run the programs of docs/languages alone, those whose language is installed
	@cargo test --locked --features failpoints --test suite the_example_ -- --nocapture --test-threads 1

.PHONY: soak
soak: setup kafka ## Break things in random order for SOAK_SECONDS (600), by SOAK_SEED
	@SOAK_SECONDS=$${SOAK_SECONDS:-600} cargo test --locked --features failpoints --test suite soak -- --nocapture

.PHONY: bench
bench: kafka ## Measure relay, latency, inserts, idling, takeover and consuming, and write the table of docs/performance.md
	@cargo bench --locked --bench services -- report

.PHONY: bench-peers
bench-peers: kafka $(PEERS_LIB)/.complete ## Measure Debezium's outbox router and outboxd in turn, on the same services
	@cargo bench --locked --bench services -- peers

$(PEERS_LIB)/.complete: benches/peers/pom.xml | setup
	$(call fetch,$<,Debezium)

.PHONY: bench-paths
bench-paths: setup ## Measure the pure paths that every message takes
	@cargo bench --locked --bench paths

.PHONY: bench-relay
bench-relay: kafka ## Measure the relay alone, beside its upper bound: ARGUMENTS="--rounds 1" for other options
	@cargo bench --locked --bench services -- relay $(ARGUMENTS)

.PHONY: clean
clean: ## Remove what was built and fetched
	@rm -rf target
