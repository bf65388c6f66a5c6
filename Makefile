# Every target makes what it needs, works twice in a row, and from another folder.
# `make demo` and `make test` are all that a fresh machine needs; both need Python 3.11 or newer.

ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
PYTHON ?= python3
DATA ?= ../shared/data
BIN := $(ROOT)/.venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt


# With one thread per process, two processes on two cores don't fight over them.
export OMP_NUM_THREADS = 1
export OPENBLAS_NUM_THREADS = 1
export MKL_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check lint types imports format docs docs-check clean \
	bench-decide bench-demo bench-throughput bench-kills bench-coverage \
	bench-paper bench-regmix bench-slimpajama bench-overtraining bench-speed bench-scale bench-optimum

help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*?## ' $(ROOT)/Makefile | awk -F ':.*?## ' '{printf "  %-18s %s\n", $$1, $$2}'

# One stamp per set of packages, renewed when the project's files change.
$(ROOT)/.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mixlaw needs Python 3.11 or newer, found $$($(PYTHON) --version 2>&1)"; \
		  echo "  do: make PYTHON=python3.12"; exit 1; }
	@echo "== making a virtual environment in .venv"
	@cd $(ROOT) && $(PYTHON) -m venv .venv

$(ROOT)/.venv/.train: $(ROOT)/pyproject.toml $(ROOT)/constraints.txt | $(ROOT)/.venv/bin/python
	@echo "== installing mixlaw and PyTorch (a few minutes the first time)"
	@cd $(ROOT) && $(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1' \
		&& $(PIP) --editable '.[train]' && touch $@

$(ROOT)/.venv/.dev: $(ROOT)/.venv/.train
	@echo "== installing the development tools"
	@cd $(ROOT) && $(PIP) --editable '.[train,baselines]' --group dev && touch $@

ifneq ($(words $(ROOT)),1)
$(error mixlaw's folder must have a path without spaces for make, found "$(ROOT)")
endif

demo: $(ROOT)/.venv/.train ## Runs the whole loop on real text; FRESH=1 trains again.
	@cd $(ROOT) && $(BIN)/mixlaw demo --study demo $(if $(filter 1 yes true,$(FRESH)),--fresh)

test: $(ROOT)/.venv/.dev ## Runs all tests but the slow ones.
	@cd $(ROOT) && $(BIN)/pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(ROOT)/.venv/.dev ## Runs the tests that take minutes or a network.
	@cd $(ROOT) && $(BIN)/pytest -m slow $(ARGS)

lint: $(ROOT)/.venv/.dev ## Checks style, format, types and import contracts.
	@cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright \
		&& $(BIN)/lint-imports

format: $(ROOT)/.venv/.dev ## Formats the code.
	@cd $(ROOT) && $(BIN)/ruff check --fix . ; $(BIN)/ruff format .

docs: $(ROOT)/.venv/.dev ## Writes the pages that are generated (the command line's reference).
	@cd $(ROOT) && $(BIN)/python docs/generate.py

docs-check: $(ROOT)/.venv/.dev ## Fails when a generated page is stale or a link is broken.
	@cd $(ROOT) && $(BIN)/python docs/generate.py --check

check: lint docs-check test ## What CI runs.

bench-decide: $(ROOT)/.venv/.train ## Trains what mixlaw decides, and compares (an hour; ARGS='--parts cap').
	@cd $(ROOT) && $(BIN)/python benchmarks/decide.py $(ARGS)

bench-demo: $(ROOT)/.venv/.train ## Runs the whole demo with three seeds (about 10 minutes).
	@cd $(ROOT) && $(BIN)/python benchmarks/demo.py $(ARGS)

bench-throughput: $(ROOT)/.venv/.train ## Measures the trainer against a textbook decoder.
	@cd $(ROOT) && $(BIN)/python benchmarks/throughput.py $(ARGS)

bench-kills: $(ROOT)/.venv/.dev ## Kills workers and coordinators 50 times and compares the numbers.
	@cd $(ROOT) && $(BIN)/python benchmarks/kills.py $(ARGS)

bench-coverage: $(ROOT)/.venv/.train ## Counts how often intervals hold the truth, on simulated studies (15 minutes).
	@cd $(ROOT) && $(BIN)/python benchmarks/coverage.py $(ARGS)

bench-paper: $(ROOT)/.venv/.dev ## Judges laws on the runs of Ye et al. (DATA=folder of published runs).
	@cd $(ROOT) && $(BIN)/python benchmarks/paper.py --fit $(DATA) $(ARGS)

bench-regmix: $(ROOT)/.venv/.dev ## Judges laws on RegMix's runs, beside LightGBM.
	@cd $(ROOT) && $(BIN)/python benchmarks/regmix.py --fit $(DATA) $(ARGS)

bench-slimpajama: $(ROOT)/.venv/.dev ## Judges joint laws on the SlimPajama runs.
	@cd $(ROOT) && $(BIN)/python benchmarks/slimpajama.py --fit $(DATA) $(ARGS)

bench-overtraining: $(ROOT)/.venv/.dev ## Judges the loss and error laws on the runs of Gadre et al.
	@cd $(ROOT) && $(BIN)/python benchmarks/overtraining.py --fit $(DATA) $(ARGS)

bench-speed: $(ROOT)/.venv/.dev ## Times fits against the official recipe.
	@cd $(ROOT) && $(BIN)/python benchmarks/speed.py --fit $(DATA) $(ARGS)

bench-scale: $(ROOT)/.venv/.dev ## Judges the law at another scale and steps saved on the published runs.
	@cd $(ROOT) && $(BIN)/python benchmarks/scale.py $(DATA) $(ARGS)

bench-optimum: $(ROOT)/.venv/.dev ## Times the optimum beside CVXPY, the paper's grid and RegMix's draws.
	@cd $(ROOT) && $(BIN)/python benchmarks/optimum.py --fit $(DATA) $(ARGS)

clean: ## Removes the virtual environment and the demo's study (the fetched text stays cached).
	@cd $(ROOT) && rm -rf .venv demo bench
