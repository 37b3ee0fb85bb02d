# Each target sets up what it needs; the first time takes a few minutes, later ones a moment.

SHELL := /bin/sh
.DEFAULT_GOAL := help
PY := .venv/bin/python
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

export PACE KEEP

.PHONY: help setup setup-tests demo up doctor test check bench lock chart-schema clean

help: ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */	/' | while IFS='	' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. As root, type: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) tools/setup.py

setup-tests:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found. As root, type: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) tools/setup.py --tests

demo: setup ## The whole loop on the sample product; PACE=person waits for your merge, KEEP=1 leaves it running
	@$(PY) -m loopwright_cli demo

up: setup ## The stack for real use, in the foreground; Ctrl-C stops it
	@$(PY) -m loopwright_cli up

doctor: setup ## What is missing on this machine, and the remedy
	@$(PY) -m loopwright_cli doctor

test: setup-tests ## All tests but those on Kubernetes
	@$(PY) -m pytest

test-k8s: setup-tests ## The tests on Kubernetes: KUBECONFIG's, kind's, or a node of its own
	@$(PY) -m tests.cluster.binaries kubernetes helm >/dev/null
	@$(PY) -m pytest tests/cluster

check: setup-tests ## Lint, format, types, import direction
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy -p loopwright_common -p loopwright_repositories -p loopwright_ingest -p loopwright_cluster -p loopwright_investigator \
		-p loopwright_pr_agent -p loopwright_measure -p loopwright_gateway -p loopwright_cli
	@$(PY) -m pytest -q tests/test_imports.py

bench: setup ## Benchmarks, each a ratio within its run
	@$(PY) -m bench

LOCK = $$($(PYTHON) tools/setup.py --uv) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

lock: ## Locks requirements.in anew, and of it what the image needs
	@$(LOCK) requirements.in -o requirements.lock
	@$(PYTHON) tools/image_requirements.py | $(LOCK) - --constraint requirements.lock -o requirements-image.lock

chart-schema: setup ## Writes the chart's values.schema.json anew, from values.yaml and the services' settings
	@$(PY) tools/chart_schema.py

clean: ## Removes what was made in the checkout, data included
	rm -rf .venv .cache data dist
