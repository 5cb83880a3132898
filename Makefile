PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test soak lint format bench help

help:     ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

setup: $(VENV)/.done  ## make .venv once, with the exact versions of constraints.txt

$(VENV)/.done: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("clip_more needs Python 3.11 or newer; say make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## BCE, and BCE + MORE, on handwritten digits: no download, a few minutes
	$(BIN)/clip-more demo

test: setup  ## the whole test suite, offline, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

soak: setup  ## what is too long for the suite: 10,000 damaged inputs a reader, runs killed at 20 random moments and more
	CLIP_MORE_KILLS=20 $(BIN)/python -m pytest tests/training/test_kills.py
	CLIP_MORE_FUZZ=10000 $(BIN)/python -m pytest tests/fuzz

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff rewrite the layout of the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## step, memory, text, scale, loader, metrics and inference against plain fine-tuning, stock PEFT and transformers
	$(BIN)/python eval/benchmark.py --quick
