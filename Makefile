# make demo    install into .venv, train an I-JEPA on the built-in sample or go on with it, evaluate it
# make test    install into .venv, then lint, types and tests
# make check   lint and types only
# make bench   run the benchmarks; each prints one table

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles modules when they are first imported; to compile all of them takes as long as the installation
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile -c constraints.txt
RUN := runs/demo

.PHONY: demo test check bench format
demo: $(VENV)/.installed
	$(BIN)/jepa train demo --run $(RUN) --resume
	$(BIN)/jepa evaluate $(RUN)

test: check  # one process per core, of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/data.py index
	$(BIN)/python benchmarks/data.py decode --images 200 --rounds 1

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed
