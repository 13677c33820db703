# `make demo` and `make test` set the machine up by themselves; `make` alone lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup renderer test test-fast check lint types format docs demo wheel clean

PY := .venv/bin/python
ARGS ?=
# of pytest; a test takes up to 4 GB
WORKERS ?= 2
# A file stays with one worker, whose fixtures its tests share; they start in the order of tests/conftest.py.
SPREAD = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The renderer that scripts/setup.sh saw working; MUJOCO_GL in the environment wins.
GL = MUJOCO_GL="$${MUJOCO_GL:-$$(cat .venv/mujoco_gl 2>/dev/null || echo egl)}"

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup:  ## .venv, Debian packages, renderer; instant when already done
	@bash scripts/setup.sh

renderer: setup
	@[ -n "$$MUJOCO_GL" ] || [ -s .venv/mujoco_gl ] || \
	    { echo "MuJoCo cannot render here: see setup's message above." >&2; exit 1; }

test: setup  ## every test, WORKERS at a time (ARGS="-k reward")
	@$(GL) $(PY) -m pytest $(SPREAD) -m "slow or not slow" $(ARGS)

test-fast: setup  ## the tests that take seconds
	@$(GL) $(PY) -m pytest $(SPREAD) $(ARGS)

check: lint types  ## what .ci/run wants before the tests

lint: setup  ## ruff, spelling, whitespace, YAML, large files
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && .venv/bin/typos
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	    SKIP=ruff-check,ruff-format,typos PRE_COMMIT_HOME=.venv/pre-commit .venv/bin/pre-commit run --all-files; \
	else echo "lint: no git here, so ruff and typos alone" >&2; fi

types: setup  ## mypy
	@$(PY) -m mypy

format: setup  ## ruff, fixing what it can
	@$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

docs: setup  ## docs/_build/html; a warning is an error
	@$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html $(ARGS)

demo: $(if $(findstring --video,$(ARGS)),setup,renderer)  ## examples/demo.py (ARGS="--help")
	@$(GL) $(PY) examples/demo.py $(ARGS)

wheel: setup  ## dist/torchrl_vip-*.whl
	@$(PY) -m build --wheel --no-isolation

clean:  ## caches and builds; .venv, runs and outputs stay
	rm -rf build dist docs/_build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
