# Every target is enough by itself on a fresh clone that has Python, a C++ compiler and make.
# Another Python, environment, torch or selection:
#   make test PYTHON=python3.12 VENV=.venv-312 TORCH=torch==2.13.0 TESTS=tests/ops

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch torchvision
EXTRAS ?= dev,bench,plot,tensorboard
TESTS ?=

bin := $(abspath $(VENV))/bin
native_sources := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
ci_targets := test lint typecheck docs test-cpu-torch asan test-slow

.PHONY: setup demo test test-slow packaging test-cpu-torch asan lint format typecheck docs bench ci clean

setup: $(VENV)/.library

$(VENV)/.dependencies: pyproject.toml
	test -x $(bin)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) and the development tools; the first time this takes minutes."
	$(bin)/python -m pip install --quiet $(TORCH) 'setuptools>=77.0.3' ninja
	DEEPCLUST_EXT_NATIVE=0 $(bin)/python -m pip install --quiet --no-build-isolation --editable '.[$(EXTRAS)]'
	touch $@

# What pip does for an editable install too, except that this compiles only what changed.
$(VENV)/.library: $(VENV)/.dependencies setup.py $(native_sources)
	$(bin)/python setup.py --quiet build_ext --inplace
	touch $@

demo: setup
	$(bin)/deepclust-ext demo

test: setup
	$(bin)/python -m pytest $(TESTS)

test-slow: setup
	$(bin)/python -m pytest -m slow $(TESTS)

packaging: setup
	$(bin)/python -m pytest -m slow tests/test_packaging.py

# The library lies in the tree, so a second build of the same tree is made in a copy: $(call copy_tree,FOLDER)
define copy_tree
	mkdir -p $(1)
	find $(1) -type f ! -name '*.so' ! -name _build.json ! -path '$(1)/build/*' ! -path '$(1)/.venv/*' -delete
	tar -c --exclude=./.git --exclude='./.venv*' --exclude=./build --exclude='*.so' --exclude=_build.json . | tar -x -C $(1)
endef

# The oldest torch at hand, without torchvision: every op, and every module at least imported.
test-cpu-torch:
	$(call copy_tree,build/cpu-torch)
	$(MAKE) -C build/cpu-torch test VENV=.venv TORCH=torch==2.13.0 EXTRAS=dev TESTS="tests/ops tests/test_layout.py"

# The op tests with AddressSanitizer and UndefinedBehaviorSanitizer in the library.
asan: setup
	$(call copy_tree,build/asan)
	cd build/asan && DEEPCLUST_EXT_SANITIZE=1 $(bin)/python setup.py --quiet build_ext --inplace
	cd build/asan && LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $(bin)/python -m pytest tests/ops

lint: setup
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/clang-format --dry-run --Werror $(native_sources)

format: setup
	$(bin)/ruff check --fix
	$(bin)/ruff format
	$(bin)/clang-format -i $(native_sources)

typecheck: setup
	$(bin)/mypy

docs: setup
	$(bin)/python -m pytest --doctest-modules deepclust_ext

bench: setup
	$(bin)/python -m pytest benchmarks --benchmark-only

ci:
	@for target in $(ci_targets); do \
		echo "== make $$target ($$(date +%T))"; \
		$(MAKE) --no-print-directory $$target || { echo "make $$target failed"; exit 1; }; \
	done

clean:
	rm -rf build dist *.egg-info deepclust_ext/*.so deepclust_ext/_build.json .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.library
