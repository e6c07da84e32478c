# make run: the page on 127.0.0.1:7860.  make test: everything that CI runs.  Both set up all they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint weights train browser clean

run: .venv/run
	$(BIN)/python app.py

weights: .venv/run
	$(BIN)/python -m vlm.gguf_text
	$(BIN)/python -c "from pruning.kernels import warm_up; print('  selection:', warm_up())"
	$(BIN)/python -m kvquant.kernels

test: .venv/dev weights browser
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# Trains the embedded model from nothing (hours on two cores); resumes where it was stopped. See training/README.md.
train: .venv/dev weights
	$(BIN)/python -m training.train_tower --letters --minutes 14
	$(BIN)/python -m training.train_tower --minutes 120
	$(BIN)/python -m training.train_lm
	$(BIN)/python -m training.export
	$(BIN)/python -m training.train_scorer

.venv/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "TrimLens needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

# Playwright drives Debian's chromium; it is installed where the machine has none.
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		($(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends \
		chromium fonts-dejavu-core) || { echo "Install chromium or google-chrome, then run make test again."; exit 1; }

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
