# VoxScale: `make demo`, `make test`, `make check`, `make bench ONLY=name`. `make` alone lists them.

SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
OUT ?= out/demo
PRESET ?= phantoms
STUDY ?= small
JOBS ?= 1
# torch, deepspeed and the rest are pinned in constraints.txt for these two versions of Python.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)

.PHONY: help install install-dev demo shards study report audit test check bench format wheel clean

help:
	@echo "make demo                                   synthetic scans -> pretraining -> fine-tuning -> out/demo/report"
	@echo "make demo DATA=<folders> TASK=<folder> OUT=<folder>   the same on your scans"
	@echo "  DATA takes several folders; quote one with spaces: DATA='\"my scans\" more'. ARGS='--ingest.subject ...' overrides."
	@echo "make shards DATA=<folders> STORE=<store> SHARDS=<folder> [PLAN=<plan.json>] [EXCLUDE=<task store>]"
	@echo "                                            check, de-identify and pack scans; ARGS='...' goes to ingest"
	@echo "make study DATA=<folders> TASK=<folder> OUT=<folder>   which pretext task helps on few labelled cases: a table"
	@echo "  JOBS=12: trainings at a time. ARGS='--minutes 5': with what is done by then. STUDY=hippocampus on a GPU."
	@echo "make report STORE=<store> [SHARDS=<folder>] what a store holds, as a page"
	@echo "make audit STORE=<store> TASK=<store or folder>  scans that are also in a task"
	@echo "make test                                   all tests"
	@echo "make check                                  format, lint, types, layers, fast tests"
	@echo "make bench ONLY=<name>                      one benchmark, one JSON line"

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 must be installed, with venv; run apt-get install python3 python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[launch]'
	$(PY) -m voxscale.engine.compile
	$(PY) -m voxscale.kernel
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[launch,dev]'
	@# Of PyMIC one file is compared with, which needs torch alone.
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt PYMIC
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[launch,bench]'
	@touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(PY) -m launch demo configs/demo.py:$(PRESET) --out "$(OUT)" $(if $(DATA),--data $(DATA)) $(if $(TASK),--task "$(TASK)") $(ARGS)

shards: install
	@test -n "$(DATA)" -a -n "$(STORE)" -a -n "$(SHARDS)" || { echo "error: DATA, STORE and SHARDS must be given"; exit 2; }
	$(PY) -m data_prep ingest $(DATA) "$(STORE)" --labels ignore $(ARGS)
	$(if $(PLAN),,$(PY) -m data_prep plan "$(STORE)" --out "$(STORE).plan.json")
	$(PY) -m data_prep pack "$(STORE)" "$(SHARDS)" --plan "$(or $(PLAN),$(STORE).plan.json)" $(if $(EXCLUDE),--exclude "$(EXCLUDE)")

study: install
	@test -n "$(PREPARED)" -o -n "$(DATA)" -a -n "$(TASK)" || { echo "error: DATA and TASK must be given"; exit 2; }
	$(PY) -m launch study configs/study.py:$(STUDY) --out "$(OUT)" --jobs $(JOBS) $(if $(DATA),--data $(DATA)) \
		$(if $(TASK),--task "$(TASK)") $(if $(PREPARED),--prepared "$(PREPARED)") $(ARGS)

report: install
	@test -n "$(STORE)" || { echo "error: STORE must be given"; exit 2; }
	$(PY) -m data_prep report "$(STORE)" $(if $(SHARDS),--shards "$(SHARDS)")

audit: install
	@test -n "$(STORE)" -a -n "$(TASK)" || { echo "error: STORE and TASK must be given"; exit 2; }
	$(PY) -m data_prep audit "$(STORE)" --against "$(TASK)"

# Two files at a time: half of the tests wait for processes of their own.
test: install-dev
	$(PY) -m pytest -n 2 --dist loadfile

check: install-dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/basedpyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports
	$(PY) -m pytest -m 'not slow'

bench: $(VENV)/.installed-bench
	@test -n "$(ONLY)" || { echo "error: ONLY must name a benchmark; choose from $$(cd tests/bench && ls bench_*.py | sed 's/bench_\(.*\).py/\1/' | tr '\n' ' ')"; exit 2; }
	$(PY) tests/bench/bench_$(ONLY).py

format: install-dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

wheel: install-dev
	$(PY) -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info
