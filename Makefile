# make demo   installs the core, trains a small model on real text, shows what it writes
# make test   installs what the tests need and runs them
# make test-fast   the same without the tests marked slow, for every save
# make compare   3 objectives x 3 layouts x 2 seeds on 8 virtual devices, and the page of them
# make lint   ruff and mypy, as CI runs them

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast compare lint clean

demo: $(VENV)/core
	$(BIN)/python -m ddm_jax.main --config=configs/radd_tiny.py --config.model.time=constant \
	  --workdir=work/demo

compare: $(VENV)/core
	$(BIN)/python -m ddm_jax.compare --config=configs/compare_tiny.py --workdir=work/compare \
	  --devices=8 --objectives=radd_t_dce,udlm:model.time=adaln,ar:optim.lr=3e-4

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"ddm_jax needs Python 3.11 or later, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/core: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/dev: pyproject.toml setup.py requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
