# make demo, make test: start here. make bench measures this machine. Every target makes .venv first if it must.
# CONTRIBUTING.md says what each one takes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# On Linux the plain index serves the CUDA build, several GB; PyTorch's own pages name the index of the
# 200 MB CPU build, for: make install TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test test-slow bench check format clean

install: $(READY)

# --no-compile: modules are compiled when they are first imported, which most of torch's never are.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(TORCH)
	$(BIN)/pip install --quiet --no-compile -e .[cpu,export,dev]
	@touch $@

demo: $(READY)
	@mkdir -p $(OUT)
	$(BIN)/speechssm generate examples/prompt.flac -o $(OUT)/demo.wav --seconds 20 --seed 0 --with-prompt

test: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal --durations 15

test-slow: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal --durations 15 -m "slow and not gpu and not rtx"

bench: $(READY)
	$(BIN)/speechssm bench all -o $(OUT)/bench

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check --output-format concise .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

clean:
	rm -rf $(OUT) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
