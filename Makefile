# Needs Python 3.11 or later, make and a package index; everything else goes into .venv.
PYTHON ?= python3
# Two workers, each file in one of them: the whole of it takes some five minutes on two cores.
PYTEST_ARGS ?= -n 2 --dist loadfile
FUZZ_ARGS ?=
CHAOS_ARGS ?=
PY = .venv/bin/python
STAMP = .venv/.installed
# What exists of it: a checkout may lack the examples or the benchmarks.
TYPED = $(wildcard llm_budget_mw adapters tests examples benchmarks)
ADAPTERS = $(notdir $(wildcard adapters/llm_budget_mw_*))

.PHONY: venv test fuzz chaos lint types contracts wheel check demo bench bench-scale clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev,bench,demo]"
	touch $(STAMP)

test: $(STAMP)
	$(PY) -m pytest --cov $(PYTEST_ARGS)

# 100,000 inputs for each dialect, some ten minutes; FUZZ_ARGS="--dialect gemini --seed 2" for others.
fuzz: $(STAMP)
	$(PY) -m tests.fuzz $(FUZZ_ARGS)

# Ten minutes of killed workers, a failing store and a bad way to it; CHAOS_ARGS="--minutes 2 --seed 3".
chaos: $(STAMP)
	$(PY) -m tests.chaos $(CHAOS_ARGS)

check: lint types contracts wheel

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP)
	$(PY) -m mypy $(TYPED)
	$(PY) -m pyright --pythonpath $(PY)

contracts: $(STAMP)
	.venv/bin/lint-imports

# The editable install finds files that the wheel may have forgotten: import what ships, from outside.
wheel: $(STAMP)
	rm -rf dist build
	$(PY) -m build --outdir dist
	.venv/bin/check-wheel-contents dist
	$(PYTHON) -m venv build/core
	build/core/bin/python -m pip install --quiet dist/*.whl
	cd build && core/bin/python -Ic "import llm_budget_mw"
	for adapter in $(ADAPTERS); do \
		extra=$${adapter#llm_budget_mw_} && \
		$(PYTHON) -m venv build/$$extra && \
		build/$$extra/bin/python -m pip install --quiet "$$(ls dist/*.whl)[$$extra]" && \
		(cd build && $$extra/bin/python -Ic "import $$adapter") || exit 1; \
	done

demo: $(STAMP)
	$(PY) -m examples.demo

bench: $(STAMP)
	$(PY) -m benchmarks

# Processes, shards and what 100,000 requests a second would need: minutes, and every core.
bench-scale: $(STAMP)
	$(PY) -m benchmarks scale

clean:
	rm -rf .venv build dist
