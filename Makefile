# make setup   .venv with everything the project needs (done once, redone when pyproject.toml changes)
# make train   the default job: MaxViT with neighborhood attention on handwritten digits
# make test    lint and every test that needs no GPU;  make test-all adds the slow ones

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14,\
            $(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
BIN := .venv/bin
STAMP := .venv/.set-up

.PHONY: setup train test test-all lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "setup: no Python >= 3.11 on the PATH; install one or run 'make setup PYTHON=/path/to/python'" >&2; exit 1; }
	@echo "setup: installing into .venv with $$($(PYTHON) --version) (once, about 6 GB and a few minutes)"
	@$(PYTHON) -m venv .venv || { echo "setup: '$(PYTHON) -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

train: $(STAMP)
	@echo "train: python train.py (MaxViT, neighborhood attention, digits)"
	@$(BIN)/python train.py

test: lint
	@echo "test: everything that needs no GPU, on $$(nproc 2>/dev/null || echo 2) cores"
	@$(BIN)/python -m pytest -n auto --dist worksteal

test-all: lint
	@echo "test-all: the slow tests too"
	@$(BIN)/python -m pytest -n auto --dist worksteal -m 'not gpu'

lint: $(STAMP)
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check .

format: $(STAMP)
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

clean:
	rm -rf .venv logs .pytest_cache .ruff_cache
