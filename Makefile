# `make` lists the targets. Everything runs in .venv, which is made when it is needed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test verify lint types docs bench evidence study wheel format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: .venv/installed  ## race SALF, FedAvg, deadline-dropping and FedBuff on the bundled digits: a table and a picture
	$(BIN)/lanterne run salf fedavg drop fedbuff --data digits --clients 30 --stragglers 0.9 --rounds 60 --seeds 1 \
		--out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: lint types docs  ## everything that is checked at a change: lint, types, import contracts, docs, tests
	$(BIN)/pytest -n 2 --dist loadgroup

verify: .venv/installed-dev  ## the statistical checks and installations beyond a minute
	$(BIN)/pytest -m verify

lint: .venv/installed-dev  ## style, format and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: .venv/installed-dev  ## strict types
	$(BIN)/mypy

# --quiet would hide the warnings from --strict.
docs: .venv/installed-dev  ## the documentation, built strictly into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed-dev  ## the measurements in benchmarks/, one after the other
	@for script in $(sort $(wildcard benchmarks/*.py)); do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

wheel: .venv/installed-dev  ## a wheel in dist/
	$(BIN)/python -m build --wheel

format: .venv/installed-dev  ## repair what can be repaired by a machine
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove everything that make made, except runs/
	rm -rf .venv build dist site .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find benchmarks examples src studies tests -name __pycache__ -type d -prune -exec rm -rf {} +

# DATA is a folder that holds MNIST as train.parquet and test.parquet; see studies/first_evidence/README.md.
evidence: .venv/installed  ## first evidence on MNIST, with DATA=folder: about 6 minutes on two cores, resumable
	@test -n "$(DATA)" || { echo "say where MNIST is: make evidence DATA=path/to/mnist" >&2; exit 2; }
	@for run in shards never_finish loaded; do \
		if [ -d runs/evidence/$$run ]; then $(BIN)/lanterne resume runs/evidence/$$run || exit; \
		else $(BIN)/lanterne run studies/first_evidence/$$run.toml --data "$(DATA)" --out runs/evidence/$$run || exit; fi; done
	$(BIN)/python studies/collect.py studies/first_evidence runs/evidence/shards runs/evidence/never_finish runs/evidence/loaded

# DATA is a folder that holds mnist/ and cifar10/; STUDY is salf or locfedmix, see studies/*/README.md.
SIZE ?= small
STUDY ?= salf

study: .venv/installed  ## a study, with DATA=folder and STUDY=salf or locfedmix: within an hour on two cores, resumable
	@test -n "$(DATA)" || { echo "say where mnist/ and cifar10/ are: make study DATA=path/to/data" >&2; exit 2; }
	$(BIN)/python -m studies.$(STUDY) --size $(SIZE) --data "$(DATA)" --publish

# Two stamps, because the demo needs less than the tests.

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "lanterne needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lanterne needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.11" >&2; exit 2; }
	"$(PYTHON)" -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch .venv/installed $@
