# Every habit of ours is a target. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# One profile for tests, demo and images, so that the dependency tree is compiled once.
CARGO  ?= cargo
# An absolute CARGO_TARGET_DIR moves everything that is built.
BINS   := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
UNIT_TESTS := $(if $(NEXTEST),nextest run --no-fail-fast,test --no-fail-fast) --release --locked

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## Show a unit's whole life in QEMU: born, updated, killed and reborn
	@$(BINS)/leap-lab demo --bin-dir $(BINS)

.PHONY: lab
lab: build ## Start a laboratory to play with; Ctrl-C ends it
	@$(BINS)/leap-lab lab --bin-dir $(BINS)

.PHONY: run
run: build ## Start sky and factory on this machine: make run INTERFACE=eth1
	@$(BINS)/leap-lab run --bin-dir $(BINS) $(if $(INTERFACE),--interface $(INTERFACE))

.PHONY: setup
setup: ## Install the Debian packages that the targets need (asks for sudo where it must)
	@./tests/setup.sh

.PHONY: build
build: ## Build every program
	$(CARGO) build --release --locked --workspace --bins

.PHONY: check
check: ## Formatting, lints and documentation, all without warnings
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --locked --workspace --no-deps --document-private-items

.PHONY: test
test: setup build ## All tests, the whole life of a unit among them
	LEAP_BIN_DIR=$(BINS) $(CARGO) $(UNIT_TESTS) --workspace
	$(CARGO) test --release --locked --workspace --doc

.PHONY: e2e
e2e: setup build ## Only what starts machines: a unit's whole life, all kinds of firmware, Secure Boot; half an hour
	LEAP_MATRIX=all LEAP_BIN_DIR=$(BINS) $(CARGO) test --release --locked --workspace --test whole_life --test matrix --test secure_boot --test reproducible

.PHONY: image
image: build ## Build releases from image/recipes into build/image/releases
	@$(BINS)/leap-lab demo --until release --bin-dir $(BINS) --build-dir build/image

.PHONY: reproduce
reproduce: build ## Build a release and a customer's disk twice and compare every byte
	@$(BINS)/leap-lab reproduce --bin-dir $(BINS) --build-dir build/reproduce

# Below the folder of the rest: its own flags, its own dependencies. What a run finds stays
# there too, so that the next one goes on from it; a crash is a file beside it.
FUZZ   := $(dir $(BINS))fuzz
SECONDS_EACH ?= 20

.PHONY: fuzz
fuzz: ## Feed broken packets to the network boot servers: make fuzz SECONDS_EACH=600
	cd pxe/fuzz && $(CARGO) fmt --check && CARGO_TARGET_DIR=$(FUZZ) $(CARGO) build --release --locked
	cd pxe/fuzz && for target in dhcp dhcp6 tftp http; do \
		mkdir -p $(FUZZ)/finds/$$target; \
		CARGO_TARGET_DIR=$(FUZZ) $(CARGO) run --release --locked --quiet --bin $$target -- \
			$(FUZZ)/finds/$$target corpus/$$target ../testdata/corpus/$$target -dict=dictionaries/$$target \
			-max_total_time=$(SECONDS_EACH) -max_len=4096 -timeout=10 -rss_limit_mb=512 \
			-print_final_stats=1 -verbosity=0 -artifact_prefix=$(FUZZ)/crash-$$target-; \
	done

.PHONY: golden
golden: ## Rewrite the recorded texts that tests compare with, then look at the difference
	-UPDATE_GOLDEN=1 $(CARGO) $(UNIT_TESTS) --workspace --exclude e2e
	git diff --stat

.PHONY: bench
bench: build ## Print our figures beside a peer's, from one run; docs/benchmarks.md keeps them
	@$(BINS)/leap-lab bench --bin-dir $(BINS) --build-dir build/bench
	@$(BINS)/leap-lab bench-boot --build-dir build/bench
	@$(BINS)/leap-lab bench-births --bin-dir $(BINS) --build-dir build/bench
	@$(BINS)/leap-lab bench-floor --bin-dir $(BINS) --build-dir build/bench-floor

.PHONY: deny
deny: ## Check licences and advisories of the dependencies (needs cargo-deny)
	$(CARGO) deny --locked check

.PHONY: clean
clean: ## Remove what was built; the download cache stays
	$(CARGO) clean
	rm -rf build
