# The two commands: `make run` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PORT ?= 8101
# Tests at a time: most of them wait, for processes and for time to pass. `JOBS=`: one by one.
JOBS ?= 2
GO ?= go
INTEROP := build/interop/rafthttp-interop
COMPILED := build/compiled

.DEFAULT_GOAL := help
.PHONY: help run test test-compiled compiled interop soak mutants fuzz bench verify fix clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,speed]'
	@touch $@

run: $(STAMP)  ## start a cluster of three nodes on one port each (PORT=8101)
	@# On a terminal, Ctrl-C goes to the cluster alone, so that make sees it end well (exit code 0).
	@if [ -t 0 ]; then set -m; fi; $(BIN)/rafthttp cluster --nodes 3 --port $(PORT)

test: $(STAMP)  ## run the test suite, two tests at a time (JOBS=2)
	@# Without Go, or where its modules cannot be had, the tests that need it say so and are skipped.
	@if command -v $(GO) >/dev/null; then $(MAKE) --no-print-directory interop || true; fi
	$(BIN)/python -m pytest -m 'not soak' $(if $(JOBS),-n $(JOBS))

compiled: $(COMPILED)/.built  ## build the package with its hot path compiled, into build/compiled

$(COMPILED)/.built: $(STAMP) $(shell find src -name '*.py')
	@rm -rf $(COMPILED) build/dist && mkdir -p build
	@# By way of a source distribution: what the compiler makes does not come to lie in src.
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(BIN)/python -m build --outdir build/dist . >build/compiled.log 2>&1 \
		|| { tail -n 30 build/compiled.log >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(COMPILED) build/dist/*.whl
	@touch $@

test-compiled: compiled  ## run TESTS, those of raft and the simulators, with build/compiled
	PYTHONPATH="$(CURDIR)/$(COMPILED)" $(BIN)/python -c \
		'import rafthttp; assert rafthttp.IS_COMPILED, rafthttp.__file__'
	PYTHONPATH="$(CURDIR)/$(COMPILED)" RAFTHTTP_INTEROP_GO="$(CURDIR)/$(INTEROP)" \
		$(BIN)/python -m pytest -m 'not soak and not interpreted' \
		$(if $(JOBS),-n $(JOBS)) $(or $(TESTS),tests/raft tests/testing)

interop:  ## build the real hashicorp/raft member that mixed clusters are tested with
	@command -v $(GO) >/dev/null || { echo "make interop: Go 1.20 or newer is needed" >&2; exit 1; }
	@# A build that fails must not leave an older program to be tested.
	cd interop/go && $(GO) build -mod=readonly -buildvcs=false -trimpath -o ../../$(INTEROP) . \
		|| { rm -f ../../$(INTEROP); exit 1; }

soak: $(STAMP)  ## run the long tests, then 30 minutes of each simulator (MINUTES=30)
	@if command -v $(GO) >/dev/null; then $(MAKE) --no-print-directory interop || true; fi
	$(BIN)/python -m pytest -m soak --timeout 3600
	@# Other seeds each time: the day since 1970 is their first, times a million.
	$(BIN)/rafthttp simulate --minutes $(or $(MINUTES),30) --first $$(($$(date +%s) / 86400 * 1000000))
	$(BIN)/rafthttp simulate --driver --minutes $(or $(MINUTES),30) --first $$(($$(date +%s) / 86400 * 1000000))

fuzz: $(STAMP)  ## let atheris look for inputs that break a promise (MINUTES=5 FUZZERS=1 TARGETS="endpoint")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python -m fuzz.run --minutes $(or $(MINUTES),5) --jobs $(or $(FUZZERS),1) $(TARGETS)

bench: $(STAMP)  ## compare with real peers side by side; QUICK=1 takes 3 minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@# What cannot be had here is named in the report.
	@if command -v $(GO) >/dev/null; then $(MAKE) --no-print-directory interop || true; fi
	@sh bench/peers/install.sh
	@# Without a compiler for C, the source as it is takes part.
	@$(MAKE) --no-print-directory compiled || true
	$(BIN)/python -m bench.compare $(if $(QUICK),--quick)

mutants: $(STAMP)  ## plant bugs in the core, one at a time: each must be caught
	$(BIN)/python -m rafthttp.testing.mutants tests/raft/core/testdata

verify: $(STAMP)  ## check format, types and the arrows between rooms; only reads
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	@if command -v $(GO) >/dev/null; then cd interop/go && test -z "$$(gofmt -l .)" && $(GO) vet .; fi

fix: $(STAMP)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the commands above made
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
