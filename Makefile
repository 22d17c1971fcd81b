# Every target sets up what it needs, and only that. Change the interpreter with PYTHON=..., its place with VENV=...
PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
# In the names of result files, where one Python runs several suites.
SUITE ?= python
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test test-all services lint types bench docs conformance binary clean

python := $(VENV)/bin/python
# One stamp for the environment and the interpreter that made it, and one for each extra installed into it.
made := $(VENV)/.made-by-$(subst /,-,$(PYTHON))
has = $(VENV)/.has-$(1)

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(made):
	@tools/venv.sh $(PYTHON) $(VENV)
	@touch $@

$(call has,%): pyproject.toml $(made)
	@echo "installing into $(VENV): wfl-sdk[$*]"
	@$(python) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

run: $(call has,examples) $(call has,progress) ## the main example: a search over many small trainings, on this machine's processes
	$(python) examples/digits.py

test: $(call has,test) ## all tests; systems that are not here are skipped by name, with the reason
	$(python) -m pytest $(TESTS) --junitxml=build/tests/$(SUITE)-$$($(python) -c 'import sys; print("%d.%d" % sys.version_info[:2])').xml

test-all: ## all tests on the oldest Python here, unit and process tests on the newest; missing systems fail
	tools/test_all.sh

services: ## start the real systems that tests talk to (tests/services/stop-all.sh stops them)
	tests/services/start-all.sh

lint: $(call has,lint) ## ruff: rules and format
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: $(call has,types) ## mypy, strict
	$(VENV)/bin/mypy

bench: $(call has,test) ## measure, beside references in the same run; writes bench-results.json
	$(python) -m tests.bench

# The variable silences the theme's note on its successor.
docs: $(call has,docs) ## the pages, into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

conformance: $(call has,test) ## docs/conformance.md, from the results of the last test-all
	$(python) -m wfl.testing.conformance --write docs/conformance.md

binary: $(call has,binary) ## examples/first_chain.py as one file that needs no Python, into dist/
	@lacks=$$($(python) tools/binary_lacks.py); [ -z "$$lacks" ] || tools/apt.sh $$lacks
	$(VENV)/bin/pyinstaller --log-level WARN --noconfirm --onefile \
	    --workpath build/pyinstaller --specpath build/pyinstaller examples/first_chain.py

clean: ## remove everything that the targets above made
	rm -rf .venv .venv-oldest .venv-newest build dist site digits-report bench-results.json
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
