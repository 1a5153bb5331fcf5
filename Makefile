# make help lists the targets.

CARGO      ?= cargo

# The crates with BPF programs: only they are for the BPF target.
ebpf := $(patsubst %/src/main.rs,%,$(wildcard xdp/src/main.rs tc/src/main.rs sock/src/main.rs bench/ebpf/src/main.rs))
host := --workspace $(foreach crate,$(ebpf),--exclude lb-$(subst /,-,$(crate)))
# Names of test programs. They are always built as one set of crates: some crates alone have dependencies with fewer
# features, which would be built once more.
names = $(notdir $(basename $(patsubst %/main.rs,%,$(wildcard $(1:%=%/tests/*.rs) $(1:%=%/tests/*/main.rs)))))
in_root := $(call names,tests bench)
elsewhere := $(filter-out $(in_root),$(call names,*))

# cargo builds as the user who calls; only what needs root is run as root.
ifneq ($(shell id -u),0)
triple := $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
as_root := CARGO_TARGET_$(triple)_RUNNER='sudo --preserve-env=LB_BIN_DIR,RUST_BACKTRACE,RUST_TEST_THREADS'
endif

ARGS ?=

.PHONY: help run test test-host test-root test-kernel bench build lint lint-setup lint-format lint-host lint-ebpf lint-docs setup clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

run: ## build, and start the lab until Ctrl-C; ARGS=--once: ends by itself, 0 if every request was answered
	@scripts/setup.sh test
	$(CARGO) build --release -p lb-daemon -p lb-tests --bins
	@$(as_root) $(CARGO) run --release --quiet -p lb-tests --bin lab -- $(ARGS)

test: test-host test-root ## every test; those in namespaces need root and ask for it with sudo

test-host: ## the tests that need nothing of the kernel
	@scripts/setup.sh build
	$(CARGO) test --no-fail-fast $(host) --lib --bins $(elsewhere:%=--test %)

test-root: ## end to end, in network namespaces
	@scripts/setup.sh test
	$(CARGO) build $(host) --bins --tests
	$(as_root) $(CARGO) test --no-fail-fast $(host) $(in_root:%=--test %)

test-kernel: ## golden tests on Linux 6.1, the oldest supported, in an emulator: minutes; ARGS: names of tests
	@scripts/setup.sh kernel
	LB_CRATES='$(host)' scripts/kernel-test.sh $(ARGS)

bench: ## the benchmarks of bench/: tables, and bench/results/*.json; ARGS=--quick: in a minute
	@scripts/setup.sh test
	$(CARGO) build --release -p lb-bench
	$(as_root) $(CARGO) run --release --quiet -p lb-bench -- $(ARGS)

build: ## release binaries in target/release
	@scripts/setup.sh build
	$(CARGO) build --release

lint: lint-format lint-host lint-ebpf lint-docs ## rustfmt, clippy on host and BPF crates, rustdoc; every warning is an error

lint-setup:
	@scripts/setup.sh lint

lint-format: lint-setup
	$(CARGO) fmt --all -- --check

lint-host: lint-setup
	$(CARGO) clippy $(host) --all-targets -- -D warnings

lint-ebpf: lint-setup
	$(if $(ebpf),scripts/lint-ebpf.sh $(ebpf))

lint-docs: lint-setup
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --no-deps --document-private-items $(host)

setup: ## install what building, testing and linting need (run, test and lint do so by themselves)
	@scripts/setup.sh build
	@scripts/setup.sh test
	@scripts/setup.sh lint

clean: ## remove what was built
	$(CARGO) clean
