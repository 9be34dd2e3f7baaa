# Every target is enough by itself on a fresh clone that has Python, a C++ compiler and make.
# Another Python, environment, torch or selection:
#   make test PYTHON=python3.12 VENV=.venv-312 TORCH=torch==2.13.0 TESTS=tests/ops

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
EXTRAS_TO_RUN ?= plot
EXTRAS ?= dev,bench,plot,codecs,tensorboard,export
TOOLS ?= --no-build-isolation --editable '.[$(EXTRAS)]'
TESTS ?=

# Python compiles a module when it is first imported, and keeps it: most of the thousands that pip installs never are.
export PIP_COMPILE := 0
unexport PYTHONDONTWRITEBYTECODE

bin := $(abspath $(VENV))/bin
# Each test process runs torch on one thread, and torch's compiler within it. A test that needs more threads says so
# itself; these wait for each other asleep, since awake they would take the cores from other processes.
quiet := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive TORCHINDUCTOR_COMPILE_THREADS=1
pytest := $(quiet) $(bin)/python -m pytest --numprocesses auto --maxprocesses 8 --durations 10
native_sources := $(shell find csrc -type f ! -name '*.md')
formatted_sources := $(native_sources) $(shell find tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')
ci_targets := environments test static check-cuda test-emulated test-cpu-torch asan test-slow

.PHONY: setup environments demo test test-slow cpu-torch-environment test-cpu-torch asan check-cuda \
	test-emulated test-gpu lint format typecheck docs static bench ci clean

setup: $(VENV)/.library $(VENV)/.tools

# What runs the package, then what develops it: the demo needs the first alone.
$(VENV)/.dependencies: pyproject.toml
	@test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH): with CUDA a download of gigabytes, which takes minutes."
	@$(bin)/python -m pip install --quiet --disable-pip-version-check $(TORCH) 'setuptools>=77.0.3' ninja
	@DEEPCLUST_EXT_NATIVE=0 $(bin)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation \
		--editable '.$(if $(EXTRAS_TO_RUN),[$(EXTRAS_TO_RUN)])'
	@touch $@

$(VENV)/.tools: $(VENV)/.dependencies
	@echo "Installing the tools for development."
	@DEEPCLUST_EXT_NATIVE=0 $(bin)/python -m pip install --quiet --disable-pip-version-check $(TOOLS)
	@touch $@

# What pip does for an editable install too, except that this compiles only what changed, and for CUDA only where a GPU
# is visible.
$(VENV)/.library: $(VENV)/.dependencies setup.py $(native_sources)
	@DEEPCLUST_EXT_CUDA=$${DEEPCLUST_EXT_CUDA:-visible} $(bin)/python setup.py --quiet build_ext --inplace
	@touch $@

demo: $(VENV)/.library
	$(bin)/deepclust-ext demo --overwrite

test: setup
	@$(if $(TESTS),,grep --only-matching 'the default suite, [^;]*' CONTRIBUTING.md)
	$(pytest) $(TESTS)

# A worker takes one test at a time: they last from seconds to minutes.
test-slow: setup
	$(pytest) --maxschedchunk 1 -m slow $(TESTS)

# The library lies in the tree, so a second build of the same tree is made in a copy: $(call copy_tree,FOLDER)
define copy_tree
	@mkdir -p $(1)
	@find $(1) -type f ! -name '*.so' ! -name _build.json ! -path '$(1)/build/*' ! -path '$(1)/.venv/*' -delete
	@tar -c --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude='*.so' --exclude=_build.json \
		--exclude='*.egg-info' --exclude=__pycache__ . | tar -x -C $(1)
endef

# What lets Python load a library that was built with sanitizers.
with_sanitizers = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1

# The op tests with AddressSanitizer and UndefinedBehaviorSanitizer in the library.
asan: setup
	$(call copy_tree,build/asan)
	@cd build/asan && DEEPCLUST_EXT_SANITIZE=1 DEEPCLUST_EXT_CUDA=0 $(bin)/python setup.py --quiet build_ext --inplace
	cd build/asan && $(with_sanitizers) $(pytest) tests/ops

# Every CUDA kernel compiled for every architecture: warnings, spills, registers, shared memory, launches; then the whole
# library linked and loaded. No GPU.
check-cuda: setup
	@$(bin)/python -m tests.cuda.check_cuda

# The op tests that reach every part of the kernels: these run in all schedules, under the sanitizers and the checker.
sweep := $(sort $(wildcard tests/ops/test_*sweep.py))

# The oldest torch at hand, without torchvision: every op, and every module at least imported. What reaches every part of
# the kernels does not depend on torch. The kernels are those of processors that are not x86.
with_torch := $(addprefix tests/ops/test_,all_ops.py arguments.py compile.py tensor_temperature.py)
with_torch += tests/test_layout.py tests/test_signatures.py
cpu_torch = CFLAGS=-DDEEPCLUST_X86=0 $(MAKE) -C build/cpu-torch VENV=.venv TORCH=torch==2.13.0 EXTRAS_TO_RUN= TOOLS='hypothesis pytest pytest-xdist'

cpu-torch-environment:
	$(call copy_tree,build/cpu-torch)
	+@$(cpu_torch) --no-print-directory .venv/.tools

test-cpu-torch: cpu-torch-environment
	+$(cpu_torch) test TESTS="$(with_torch)"

# What CI installs, at once, since pip takes one core.
environments:
	@$(MAKE) --no-print-directory --jobs 2 $(VENV)/.tools cpu-torch-environment

emulated_sweeps := emulated-sweep-asan emulated-sweep-check emulated-sweep-reverse emulated-sweep-random
cp_async_reverse := early
cp_async_random := random

# A copy of the tree for each way to compile the kernels for the emulated device, with the library that runs them.
emulated_trees := emulated-plain emulated-asan emulated-check
.PHONY: $(emulated_trees)
$(emulated_trees): emulated-%: setup
	$(call copy_tree,build/emulated-$*)
	@$(bin)/python tests/cuda/emulator/build.py library build/emulated-$* $*

# The CUDA kernels executed on the CPU: the device interface, the op tests, then schedules, sanitizers and the checker.
test-emulated: setup
	@$(MAKE) --no-print-directory $(emulated_trees)
	$(pytest) tests/cuda/emulator tests/cuda/conformance
	cd build/emulated-plain && $(pytest) tests/ops
	@$(MAKE) --no-print-directory --jobs 2 --output-sync $(emulated_sweeps)

.PHONY: $(emulated_sweeps)
emulated-sweep-reverse emulated-sweep-random: emulated-sweep-%:
	cd build/emulated-plain && DEEPCLUST_EMULATOR_SCHEDULE=$* DEEPCLUST_EMULATOR_CP_ASYNC=$(cp_async_$*) \
		$(quiet) $(bin)/python -m pytest $(sweep)
emulated-sweep-asan:
	cd build/emulated-asan && $(with_sanitizers) $(quiet) $(bin)/python -m pytest $(sweep)
emulated-sweep-check:
	cd build/emulated-check && $(quiet) $(bin)/python -m pytest $(sweep)

# On a machine with a GPU, with the Python and torch that are there, in stages; STAGE=ops goes on with that one.
test-gpu:
	$(PYTHON) -m tests.cuda.gpu.ticket $(if $(STAGE),--from $(STAGE)) $(if $(RESULTS),--results $(RESULTS))

lint: setup
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/codespell
	$(bin)/clang-format --dry-run --Werror $(formatted_sources)

format: setup
	$(bin)/ruff check --fix
	$(bin)/ruff format
	$(bin)/clang-format -i $(formatted_sources)

typecheck: setup
	$(bin)/mypy

docs: setup
	$(bin)/python -m pytest --doctest-modules deepclust_ext
	$(bin)/python -m sphinx --fail-on-warning --keep-going --quiet docs/api build/api

# At once, since each takes one core.
static: setup
	@$(MAKE) --no-print-directory --jobs 2 --output-sync lint typecheck docs

bench: setup
	$(bin)/python -m pytest benchmarks --benchmark-only

# Each target by itself, with how long it took; the first that fails ends it.
ci:
	@for target in $(ci_targets); do \
		echo "== make $$target ($$(date +%T))"; \
		start=$$(date +%s); \
		$(MAKE) --no-print-directory $$target || { echo "make $$target failed"; exit 1; }; \
		echo "== make $$target took $$(( $$(date +%s) - start )) seconds"; \
	done

clean:
	rm -rf build dist *.egg-info deepclust_ext/*.so deepclust_ext/_build.json .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.library

# One op alone on the emulated device, by default under its checker: make emulated TESTS=tests/ops/test_kmeans_assign.py
MODE ?= check
.PHONY: emulated help
emulated: emulated-$(MODE)
	cd build/emulated-$(MODE) && $(if $(filter asan,$(MODE)),$(with_sanitizers)) $(pytest) $(or $(TESTS),tests/ops)

# The tables of CONTRIBUTING.md, where each target is described.
help:
	@awk -F ' *[|] *' '/^\| `make / { gsub("`", ""); printf NF == 4 ? "%-34s %s\n" : "", $$2, $$3 }' CONTRIBUTING.md
