# PYTHON=... uses that interpreter as it is; otherwise .venv is made when it is missing.
ifdef PYTHON
PY := $(PYTHON)
READY :=
else
PY := .venv/bin/python
READY := .venv/.installed
endif

.PHONY: demo test check bench help

help:
	@echo "make demo    train the whole of ULMFiT on this machine's docstrings; writes demo-out/report.html"
	@echo "make test    run the tests"
	@echo "make check   lint and type-check"
	@echo "make bench   run the benchmarks"

demo: $(READY)
	$(PY) -m ulmfit_fast demo --out demo-out

test: $(READY)
	$(PY) -m pytest

check: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY)
	$(PY) -m pytest benchmarks --benchmark-only

.venv/.installed: setup.py constraints.txt
	test -d .venv || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt setuptools wheel
	.venv/bin/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev,bench,demo]'
	touch $@
