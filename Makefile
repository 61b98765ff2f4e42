# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` are all that a fresh Debian 12 or 13 needs, as root. `make help` lists the rest.
# A target here is one or two lines: what they do is in setup/, demo/, bench/ and tests/.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

PREFIX ?= /usr/local
BIN := .venv/bin
PYTEST := $(BIN)/pytest
# Network and mounts of a test run are its own: nothing of it reaches the host, nor does the host's network reach it.
PRIVATE := setup/private
# Arguments for pytest, e.g. `make unit ARGS='-k machine'`.
ARGS ?=

export CARGO_TARGET_DIR ?= /var/cache/hyper/target

##@ The two commands
.PHONY: demo test
demo: setup ## set everything up, then run a real image in a microVM
	$(BIN)/python -m demo

test: setup test-images check contract integration conformance ## set everything up, then run the whole suite

##@ Set-up
.PHONY: setup install uninstall clean
setup: ## packages, Python, guest kernel, agent (FORCE=kernel does a step again)
	@setup/run $(addprefix --force ,$(FORCE))

install: setup ## put hyper, hyperd and the systemd unit under PREFIX (/usr/local)
	@/usr/bin/python3 -B -m setup.install install --prefix $(PREFIX)

uninstall: ## undo `make install`; PURGE=1 removes images, volumes and records too
	@/usr/bin/python3 -B -m setup.install uninstall --prefix $(PREFIX) $(if $(PURGE),--purge)

clean: ## remove what was built in this checkout (not /var/cache/hyper)
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

##@ Checks
.PHONY: check lint typecheck unit test-images contract integration conformance agent-check proto-check bench
check: lint typecheck proto-check agent-check unit ## all that needs neither guest nor adapter, in some three minutes

lint: ## format, lint and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

typecheck: ## mypy, strict
	$(BIN)/mypy hyperd cli/hyperctl tests setup guestkernel bench demo

unit: ## pure code and servicers with fakes
	$(PYTEST) tests/unit setup $(ARGS)

test-images: ## what only tests need: Ceph, fio, busybox, and images of Debian's servers
	@setup/run --tests $(addprefix --force ,$(FORCE))

contract: test-images ## each fake against its real adapter
	$(PRIVATE) $(PYTEST) tests/contract $(ARGS)

integration: test-images ## real QEMU, our kernel, our agent
	$(PRIVATE) $(PYTEST) tests/integration $(ARGS)

conformance: test-images ## black box, through the command and the API
	$(PRIVATE) $(PYTEST) tests/conformance $(ARGS)

agent-check: ## format, lint and tests of the agent
	cd agent && cargo fmt --check
	cd agent && cargo clippy --quiet --locked --all-targets -- -D warnings
	cd agent && cargo test --quiet --locked

bench: setup test-images ## measure, against the floors of this machine (ARGS='--only template -n 5')
	$(PRIVATE) $(BIN)/python -m bench $(ARGS)

##@ Development
.PHONY: proto lock kernel-config help
proto: ## generate the contract's Python
	$(BIN)/python setup/contract.py

proto-check: ## whether the generated Python is current
	$(BIN)/python setup/contract.py --check

lock: ## renew the locked versions of Python packages
	setup/lock

kernel-config: ## whether the guest kernel takes every option asked for, without building it
	@/usr/bin/python3 -B -m setup.kernel

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
