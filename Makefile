# make demo   installs ddm_jax, trains a small model on real text, shows what it writes and what is next
# make test   installs what the tests need and runs them
# make test-fast   the same without the tests marked slow, for every save
# make compare   3 objectives x 3 layouts x 2 seeds on 8 virtual devices, and the page of them
# make lint   ruff and mypy, as CI runs them
# make docs   the site of docs/, in site/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast compare lint docs clean

# the folder of the demo's run: the commands that the demo shows at its end use it
DEMO := work/demo
define NEXT

Many words above are English, and the sentences are not: a network of 1.6 million
parameters cannot do better after a few minutes. What next? Activate the
environment, then try these commands:

  source $(VENV)/bin/activate

  python -m ddm_jax.sample --workdir=$(DEMO) --prefix='The Congress '
  python -m ddm_jax.evaluate --workdir=$(DEMO) --num=256
  python -m ddm_jax.main --config=mdlm_tiny --config.train.steps=400

They write texts that begin with these words, measure the likelihood of held-out
text, and train another objective, MDLM, in about a minute. README.md has more.
endef
export NEXT

demo: $(VENV)/core
	$(BIN)/python -m ddm_jax.main --config=configs/radd_tiny.py --config.model.time=constant \
	  --workdir=$(DEMO)
	@echo "$$NEXT"

compare: $(VENV)/core
	$(BIN)/python -m ddm_jax.compare --config=configs/compare_tiny.py --workdir=work/compare \
	  --devices=8 --objectives=radd_t_dce,udlm:model.time=adaln,ar:optim.lr=3e-4

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -rs

test-fast: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/docs
	$(BIN)/python -m nbconvert --log-level=WARN --to=markdown --output-dir=docs/notebook \
	  examples/quickstart.ipynb
	$(BIN)/python -m zensical build --clean --strict

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"ddm_jax needs Python 3.11 or later, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@echo "Making $(VENV), an environment of $$($(PYTHON) --version) for ddm_jax and what it needs"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/core: pyproject.toml setup.py requirements.txt | $(BIN)/python
	@echo "Installing ddm_jax and its requirements into $(VENV): some 90 packages, a minute or two"
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/dev: pyproject.toml setup.py requirements.txt | $(BIN)/python
	@echo "Installing ddm_jax, its requirements and what its tests need into $(VENV): a minute or two"
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

$(VENV)/docs: pyproject.toml setup.py requirements.txt | $(BIN)/python
	@echo "Installing what the site of docs/ needs into $(VENV)"
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) site docs/notebook
