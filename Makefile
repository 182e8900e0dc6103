# Each target sets up all that it needs, in .venv. The second time it is quick.
#
#   make demo     train with and without pruning, and compare; as "python -m dynloader demo"
#   make test     all tests
#   make bench    the microbenchmarks, as JSON in bench/results/; "python -m dynloader bench" is the short way
#   make lint     ruff, mypy, clang-format
#   make sanitize the tests of the operations under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
#   make mutants  mutation testing: which small changes of the package no test sees; ARGS="..." are the files to change
#   make gpu      on a machine with a GPU: build for it, test, compare with the CPU and look for faults, with the torch that
#                 is installed, in less than eight minutes; the results go to bench/results/gpu
#   make gpu-speed  the benchmarks there, likewise; both go on where they stopped
#   make clean    remove what was built
#
# ARGS="..." is passed on to demo, test and bench.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1
TORCHVISION ?= torchvision==0.29.1
EXTRAS ?= dev
OUT ?= bench/results

BIN := $(VENV)/bin
NATIVE := $(shell find csrc -type f) setup.py build_backend.py pyproject.toml dynloader/_version.py

.PHONY: demo test bench lint sanitize mutants gpu gpu-speed clean build FORCE

build: $(VENV)/built

# Changes only when another torch is asked for than the one that is installed.
$(VENV)/wanted: FORCE
	@mkdir -p $(VENV)
	@echo "$(TORCH) $(TORCHVISION) $(EXTRAS)" | cmp -s - $@ || echo "$(TORCH) $(TORCHVISION) $(EXTRAS)" > $@

$(VENV)/torch: $(VENV)/wanted
	@echo "== a virtual environment in $(VENV), with $(TORCH) $(TORCHVISION)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet $(TORCH) $(TORCHVISION)
	@$(BIN)/python -m pip install --quiet "setuptools>=77" ninja
	@touch $@

$(VENV)/built: $(VENV)/torch $(NATIVE)
	@echo "== the extension and the packages of the extra \"$(EXTRAS)\" (about a minute)"
	@$(BIN)/python -m pip install --no-build-isolation --editable ".[$(EXTRAS)]" --verbose \
	  > $(VENV)/build.log 2>&1 || { tail -n 60 $(VENV)/build.log; exit 1; }
	@sed -n 's/^ *\(dynloader: .*\)/   \1/p' $(VENV)/build.log | sort -u
	@touch $@

demo: build
	$(BIN)/python -m dynloader demo $(ARGS)

test: build
	$(BIN)/python -m pytest $(ARGS)

bench: build
	@mkdir -p $(OUT)
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-min-rounds=3 --benchmark-json=$(OUT)/ops.json $(ARGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

sanitize: build
	tests/sanitize.sh $(BIN)/python

MUTATED := dynloader/policies dynloader/sampling dynloader/table csrc/core csrc/algorithms

mutants: build
	DYNLOADER_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib build/mutants/lib
	PYTHONPATH=. $(BIN)/python tests/mutation/run.py $(or $(ARGS),$(MUTATED))

# No network, no .venv: the machine's own torch, which knows its GPU.
gpu:
	$(PYTHON) bench/gpu.py correct $(ARGS)

gpu-speed:
	$(PYTHON) bench/gpu.py speed $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info dynloader/*.so
