# Everything a fresh clone needs: Python 3.11 or newer, and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: install demo check test test-slow test-clients fuzz bench bench-gpu clean

install: .venv/.installed

# Touched when all is in place, so that a second run installs nothing; out of date when the dependencies change.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/sightline demo

# Two processes of one thread each, files of tests as wholes: what a file makes once is made in one of them.
test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not clients"

test-slow: check
	$(BIN)/pytest -m "slow and not clients"

# Builds an environment per program under .venv-clients/ first: once, and again when tests/clients/environments.toml changes.
test-clients: install
	$(BIN)/python tests/clients/environments.py
	$(BIN)/pytest -m clients tests/clients

# Tries files that were made to harm: make fuzz MINUTES=20 SEED=7. Inputs that fail are kept under fuzz-failures/.
MINUTES ?= 5
fuzz: install
	$(BIN)/python tests/fuzz/fuzz.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(FUZZ)

# Races Sightline against other trainers on this machine; builds an environment for each under .venv-clients/ first.
bench: install
	$(BIN)/python bench/race/race.py

# At full size on one GPU, on made-up weights, beside transformers' Trainer.
bench-gpu: install
	$(BIN)/python bench/gpu/gpu.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-clients .pytest_cache .mypy_cache .ruff_cache build dist
