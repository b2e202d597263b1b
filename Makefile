# Every target runs from a fresh clone with Python 3.11-3.13, pip and make: the environment comes first. `quality`
# needs published data sets beside it, too (docs/quality.md).
#
#   make demo PYTHON=python3.12       chooses the Python (default: the first in range)
#   make demo PIP_EXTRA_INDEX_URL=...  PyTorch's index of CPU builds: smaller than the CUDA build that pip may find

PYTHONS := python3 python3.13 python3.12 python3.11
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
# What the environment is made from. Contents decide, not times, so that switching branches costs nothing.
PINNED := pyproject.toml constraints.txt Makefile
STAMP := $(VENV)/made-from.sha256
DIGEST = { pwd; cat $(PINNED); } | sha256sum

# The environment is made with --no-compile, so Python has to keep what it compiles, or each process compiles PyTorch and
# transformers again: 15 s of a core. Images that set the variable mean to stay small, which an environment is not.
unexport PYTHONDONTWRITEBYTECODE

# Unit tests: as many files at a time as there are cores, a file's tests in one process. A worker needs about 2 GiB.
TEST_WORKERS := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# --no-compile: Python compiles what is imported when it is; all at once takes longer than the rest of the install.
.PHONY: venv
venv: ## create .venv with the pinned set; does nothing while what it is made from stays the same
	@set -eu; \
	if [ "$$($(DIGEST))" = "$$(cat $(STAMP) 2>/dev/null)" ]; then exit 0; fi; \
	for python in $(or $(PYTHON),$(PYTHONS)); do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
		then found="$$python"; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "mooring needs Python 3.11, 3.12 or 3.13, and none of these is one: $(or $(PYTHON),$(PYTHONS))." >&2; \
		echo "Install one, or name it: make <target> PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	echo "Creating $(VENV) with $$("$$found" --version) and the pinned set (a few minutes, once)"; \
	if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	"$$found" -m venv --clear $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip; \
	$(BIN)/python -m pip install $$quiet --no-compile --constraint constraints.txt \
		--build-constraint constraints.txt --editable '.[all]' --group dev; \
	$(DIGEST) > $(STAMP)

# What a pipeline of pipelines is made of.
PARTS_customer_service := intent faq
PARTS_opinion_monitor := topic sentiment

.PHONY: demo
demo: venv ## the whole way from recipe to load test; SYSTEM=<recipe> builds that one and shows its answers
ifdef SYSTEM
	@$(BIN)/mooring build $(PARTS_$(SYSTEM)) $(SYSTEM)
	@$(BIN)/python -m mooring_loadtests.system_demo $(SYSTEM) --repository model_repository --reports reports
else
	@$(BIN)/mooring build ner intent
	@$(BIN)/python -m mooring_loadtests.demo --repository model_repository --reports reports
endif

.PHONY: quality
quality: venv ## train on the real data sets and score what is served (hours on 2 cores); SYSTEM=<name> does one
	@$(BIN)/python -m mooring_loadtests.quality $(SYSTEM)

.PHONY: bench
bench: venv ## measure Mooring beside ONNX Runtime and seven other servers (hours); PART=<name> does one; ends with JSON
	@$(BIN)/python -m mooring_loadtests.bench $(PART)

.PHONY: tune-check
tune-check: venv ## hold the tuner's choice against the whole grid (more than an hour); the last line is JSON
	@$(BIN)/mooring build intent
	@$(BIN)/python -m mooring_loadtests.tune_check intent

.PHONY: bench-client
bench-client: venv ## measure the client beside bare tritonclient (about eight minutes); the last line is JSON
	@$(BIN)/mooring build ner
	@$(BIN)/python -m mooring_loadtests.client_bench --repository model_repository

.PHONY: test
test: venv ## run every test: first the unit tests, then those that start a server
	$(BIN)/python -m pytest $(TEST_WORKERS) -m "not integration and not gpu"
	$(BIN)/python -m pytest -m "integration or gpu"

.PHONY: test-unit
test-unit: venv ## run the tests that need no server (about ten minutes on 2 cores)
	$(BIN)/python -m pytest $(TEST_WORKERS) -m "not integration and not gpu"

.PHONY: lint
lint: venv ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: format
format: venv ## fix style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: sync
sync: venv ## make the client for threads from the one for coroutines (client/mooring/_async)
	$(BIN)/python .ci/generate_sync.py

.PHONY: types
types: venv ## check types
	$(BIN)/mypy

.PHONY: serve
serve: venv ## serve model_repository/ on this machine until Ctrl-C
	$(BIN)/mooring serve

.PHONY: constraints
constraints: venv ## resolve constraints.txt again to the newest versions (torch stays as pinned)
	$(BIN)/python .ci/resolve_constraints.py

.PHONY: clean
clean: ## remove the environment, caches and reports; checkpoints and published versions stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist reports
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
