# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of the CUDA kernels, an installation for development has what a GPU translates when it first runs it: that compiles in
# two fifths of the time of what wheels have, which is setup.py's. Python compiles what it imports; pip would compile
# everything. It keeps that even where the environment says not to, for `import torch` takes 3.4 s from source and 1.9 s
# else.
HYENAREC_CUDA_ARCHS ?= 80-virtual
export PYTHONDONTWRITEBYTECODE :=
INSTALL := PIP_COMPILE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt
# This checkout with extras: the extension is compiled while pip fetches and unpacks the rest.
EDITABLE = HYENAREC_CUDA_ARCHS='$(HYENAREC_CUDA_ARCHS)' $(BIN)/python setup.py --quiet build_ext --inplace & \
	HYENAREC_BUILD=0 $(INSTALL) --editable

.PHONY: demo test test-all lint sanitize cuda-sanitize clean

demo: $(VENV)/rec
	$(BIN)/hyenarec demo

# A worker a core, each file in one of them; one thread a worker, or they would wait for each other. torch's compiler
# would keep processes beside each of them. By name, the files that come last are short; by number of tests, long ones
# of few tests would, and one worker would wait for the other.
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

# The cpu backend's tests under address and undefined-behaviour checks: all that run its kernels, less those of torch's
# compilers and of the other backends, whose host programs are compiled without the checks.
sanitize: $(VENV)/test
	PYTHON=$(CURDIR)/$(BIN)/python tests/native/sanitize.sh tests/kernels \
		-k "not reference and not triton and not plan and not compile and not export and not package and not opcheck \
		and not cuda and not toeplitz and not ptx and not two_processes"

# The cuda backend's kernels on small shapes: accesses out of bounds, races in shared memory. Needs a GPU and
# compute-sanitizer; memory is not cached so that every tensor has bounds of its own.
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

# Libraries whose attention the mixer replaces, each in an environment of its own with its requirements and this
# checkout: runs its example and its tests. `make hosts` takes all of them, `make host-rectools` one. TORCH is what pip
# installs first: PyPI's torch for Linux brings CUDA, 5 GB an environment; .github/workflows/hosts.yml has the CPU's.
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
