# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A development installation compiles the CUDA kernels to PTX alone, which a GPU translates when it first runs them.
# That takes two fifths of the time of setup.py's default, which wheels have. PIP_COMPILE=0: pip would compile every
# Python file, while Python compiles only those it imports. Python must keep this bytecode, even where the environment
# forbids it: `import torch` takes 3.4 s from source and 1.9 s from bytecode.
HYENAREC_CUDA_ARCHS ?= 80-virtual
export PYTHONDONTWRITEBYTECODE :=
INSTALL := PIP_COMPILE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt
# Installs this checkout, editable, with extras; the extension is compiled while pip downloads and unpacks the rest.
EDITABLE = HYENAREC_CUDA_ARCHS='$(HYENAREC_CUDA_ARCHS)' $(BIN)/python setup.py --quiet build_ext --inplace & \
	HYENAREC_BUILD=0 $(INSTALL) --editable

.PHONY: demo test test-all lint sanitize cuda-sanitize clean

demo: $(VENV)/rec
	$(BIN)/hyenarec demo

# One pytest worker per core; all tests of a file run in the same worker. Workers have one thread each, or they would
# wait for each other, and torch's compiler starts no processes beside them. Files run in order of name, so the last
# ones are short. In order of their number of tests, long files with few tests would come last, and one worker would
# wait for the other.
PYTEST := OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile \
	--no-loadscope-reorder
test: $(VENV)/test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/test
	$(PYTEST)

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The cpu backend's tests under the address and undefined-behaviour sanitizers: all that run its kernels, except tests
# of torch's compilers and of the other backends, whose host programs are compiled without sanitizers.
sanitize: $(VENV)/test
	PYTHON=$(CURDIR)/$(BIN)/python tests/native/sanitize.sh tests/kernels \
		-k "not reference and not triton and not plan and not compile and not export and not package and not opcheck \
		and not cuda and not toeplitz and not ptx and not two_processes"

# The cuda backend's kernels on small shapes, checked for accesses out of bounds and races in shared memory. Needs a GPU
# and compute-sanitizer. The caching allocator is off so that every tensor has its own bounds.
cuda-sanitize: $(VENV)/test
	for tool in memcheck racecheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
			$(BIN)/python -m pytest -q -p no:cacheprovider tests/kernels/test_cuda.py \
			-k "test_oracle or test_nan or (test_every_size and (1000 or 8191 or 16385))" || exit 1; \
	done

$(VENV)/base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip setuptools
	$(INSTALL) torch numpy
	touch $@

$(VENV)/rec: $(VENV)/base pyproject.toml setup.py
	$(EDITABLE) '.[rec]' && wait $$!
	touch $@

$(VENV)/test: $(VENV)/base pyproject.toml setup.py
	$(EDITABLE) '.[test]' && wait $$!
	touch $@ $(VENV)/rec

# The site in build/docs. Warnings are errors: a broken link or docstring fails.
.PHONY: docs
docs: $(VENV)/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --builder html docs build/docs

$(VENV)/docs: $(VENV)/base pyproject.toml setup.py
	$(EDITABLE) '.[docs]' && wait $$!
	touch $@ $(VENV)/rec

# Libraries whose attention the mixer replaces. Each has an environment of its own, with its requirements and this
# checkout, in which its example and its tests run. `make hosts` runs all of them, `make host-rectools` one. TORCH is
# what pip installs first: PyPI's torch for Linux brings CUDA, 5 GB per environment, so .github/workflows/hosts.yml
# takes the CPU build.
TORCH ?= torch
HOSTS := $(patsubst examples/hosts/%/requirements.txt,%,$(wildcard examples/hosts/*/requirements.txt))
.PHONY: hosts $(HOSTS:%=host-%)
hosts: $(HOSTS:%=host-%)

$(HOSTS:%=host-%): host-%: build/hosts/%/ready
	OMP_NUM_THREADS=1 build/hosts/$*/bin/python -m examples.hosts.$*.train
	OMP_NUM_THREADS=1 build/hosts/$*/bin/python -m pytest -q $(wildcard tests/integrations/test_$*.py) \
		tests/integrations/test_adapters.py

build/hosts/%/ready: examples/hosts/%/requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv build/hosts/$*
	build/hosts/$*/bin/python -m pip install --quiet $(TORCH)
	build/hosts/$*/bin/python -m pip install --quiet --requirement $< pytest
	build/hosts/$*/bin/python -m pip install --quiet --editable .
	touch $@

clean:
	rm -rf $(VENV) build demo *.egg-info
