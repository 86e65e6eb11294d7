# The two commands of the README, and the parts of the second.
# A person needs `make demo` and `make test`; CI calls the same.

PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
# The image of k8s/ is made by the same steps, with EXTRAS=cluster and EDITABLE empty.
EXTRAS ?= dev
REQUIREMENTS = requirements/$(EXTRAS).txt
EDITABLE ?= --editable
TORCH_INDEX ?=
PYTEST = $(BIN)/python -m pytest --durations=10
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# For every Python that pyproject.toml allows. Which GPU libraries there are is for torch to choose.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-annotate --custom-compile-command 'make lock'

.PHONY: install demo test test-all lock lint types unit integration e2e clean
.DEFAULT_GOAL := help

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# torch first and by itself, at the version of the lock: a looser request would let the package
# index choose a build with several gigabytes of GPU libraries. Its CPU build is the same version
# with a suffix and another hash, which is why it alone is not checked.
$(STAMP): pyproject.toml $(REQUIREMENTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_INDEX:%=--index-url %) "$$(grep -o '^torch==[0-9.]*' $(REQUIREMENTS))"
	$(PIP) --no-deps --require-hashes --requirement $(REQUIREMENTS)
	$(PIP) --no-deps $(EDITABLE) .
	@touch $(STAMP)

install: $(STAMP)  ## Install, and nothing else.

demo: $(STAMP)  ## Install, then run a real search on the built-in model and open its report.
	$(BIN)/tuner search demo.yaml

# As many processes as there are CPUs, a file at a time. What kills, starves or listens for a moment
# comes last, by itself.
test: $(STAMP)  ## Install, then check style, types and import rules, and run the tests.
	$(MAKE) --no-print-directory lint types
	$(PYTEST) tests/unit -n logical
	$(PYTEST) tests/integration tests/e2e -n 2 --dist loadfile -m 'not alone and not thorough'
	$(PYTEST) tests/integration tests/e2e -m 'alone and not thorough'

# What `make test` leaves out: all but three model families in each matrix, ten kills of a
# driver (three are in `make test`), the long survival of a cluster, random faults, a full disk, and
# searches that are short of memory, whose clock jumps, or whose Ray or terminal is lost.
test-all: $(STAMP)  ## The same with every model family and the long tests.
	$(MAKE) --no-print-directory lint types
	$(PYTEST) tests/unit -n logical --all-families
	$(PYTEST) tests/integration tests/e2e -n 2 --dist loadfile -m 'not alone' --all-families
	$(PYTEST) tests/integration tests/e2e -m alone --all-families

lint: $(STAMP)  ## Style, spelling and import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/codespell -D - -D .codespell/words.txt tuner search_spaces benchmarks k8s README.md

types: $(STAMP)  ## Static types.
	$(BIN)/mypy

lock: $(STAMP)  ## Write requirements/ anew: the newest versions that pyproject.toml allows, hashed.
	$(LOCK) --extra dev --output-file requirements/dev.txt
	$(LOCK) --extra cluster --constraint requirements/dev.txt --output-file requirements/cluster.txt

unit integration e2e: $(STAMP)
	$(BIN)/python -m pytest tests/$@

clean:  ## Remove the environment and the studies.
	rm -rf $(VENV) tuner-studies
