# make demo   from nothing to three cited answers
# make test   from nothing to every check: ruff, mypy, pytest
# make conformance  long suites of others: DSPy's own tests, from DSPY_SRC=/path or cloned, and
#             llama.cpp's chat templates, from LLAMA_SRC=/path or the package index
# make soak   what an index survives: every storage operation of every change killed and failed, 200
#             random kills, 10,000 damaged files, 200 MB of text; an hour or so
# make map    writes the list of files in docs/architecture.md from their first lines
# make clean  removes what these made in this folder; fetched models stay in the user's cache
#
# A step that is done is skipped and says so. `make PYTHON=python3.12 demo` picks the interpreter.

SHELL := bash
.SHELLFLAGS := -o pipefail -c
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/done
STEPS := environment torch llama project index
QUESTIONS := "Who published self-consistency?" \
             "How many points did self-consistency gain on GSM8K?" \
             "How does tree of thoughts search?"
AMX_FLAGS := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16

.PHONY: help demo test lint soak map clean $(STEPS) demo-models test-models
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: environment torch llama project demo-models index
	@echo "[ask] three questions, one process"
	@$(BIN)/promptflow ask $(QUESTIONS) --index guide --model qwen2.5-coder-0.5b

test: environment torch llama project test-models lint
	@echo "[pytest] a process for each core, the slowest tests first"
	@$(BIN)/python -m pytest -n auto --maxprocesses 8 --maxschedchunk 1

# The suites need these and promptflow does not: they stand apart, where no other test finds them.
conformance: environment torch llama project
	@test -d $(VENV)/conformance/pytest_asyncio || $(BIN)/pip install -q --no-deps \
		-c constraints.txt --target $(VENV)/conformance pytest-asyncio pytest-mock pillow
	@echo "[pytest] tests/conformance: a few minutes a suite"
	@$(BIN)/python -m pytest tests/conformance

soak: environment torch llama project
	@PROMPTFLOW_SOAK=1 $(BIN)/python -m pytest tests/test_store.py tests/test_build.py
	@$(BIN)/python benchmarks/index_faults.py

lint: environment torch llama project
	@echo "[ruff]" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "[mypy]" && $(BIN)/mypy

map: environment
	@$(BIN)/python tools/architecture.py

clean:
	rm -rf $(VENV) build dist runs indexes/*/built .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STEPS):
	@if $(MAKE) -q $(DONE)/$@; then echo "[skip] $@: done"; \
	else echo "[$@]" && $(MAKE) $(DONE)/$@; fi

$(DONE)/environment:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "promptflow needs Python 3.11 or newer: make PYTHON=python3.12 demo")'
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

# By its exact name and alone: a machine may keep a wheel of this very version for pip to find.
$(DONE)/torch: $(DONE)/environment constraints.txt
	$(BIN)/pip install --no-compile -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@touch $@

# pip keeps the wheel that it builds: the next clone installs it in seconds. The wheel is kept under
# the source's name, whatever CMAKE_ARGS were, so a build with the user's own flags bypasses the cache.
# Where cmake is missing, pip's isolated build brings it. On some processors ggml's AMX kernels die
# with SIGSEGV in the first decode: they are left out where the compiler knows them.
ifeq ($(origin CMAKE_ARGS),undefined)
amx_off = $(shell echo 'int x;' | $(CC) $(AMX_FLAGS) -Werror -x c -c -o /dev/null - 2>/dev/null && echo $(AMX_FLAGS))
$(DONE)/llama: export CMAKE_ARGS = -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF \
	$(if $(amx_off),-DCMAKE_C_FLAGS='$(amx_off)' -DCMAKE_CXX_FLAGS='$(amx_off)')
else
NO_CACHE := --no-cache-dir
endif
$(DONE)/llama: $(DONE)/environment constraints.txt
	@echo "llama.cpp is built once, about 11 minutes on 2 cores; log: $(VENV)/llama.log"
	@$(BIN)/pip install -v $(NO_CACHE) -c constraints.txt llama-cpp-python 2>&1 \
	| tee $(VENV)/llama.log | awk '/^ *\[[0-9]+\/[0-9]+\]/ && ++n % 20 == 1 { print "  " $$1; fflush() }' \
	|| { tail -n 20 $(VENV)/llama.log; echo "not built; it needs a C++ compiler:" \
	"apt install build-essential, or xcode-select --install"; exit 1; }
	@touch $@

$(DONE)/project: $(DONE)/torch $(DONE)/llama pyproject.toml constraints.txt
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev]'
	@echo "compiling Python files on all cores (pip would use one)"
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

demo-models: model-qwen2.5-coder-0.5b model-all-minilm-l6-v2
test-models: model-smollm2-135m model-smollm2-135m-q4_0 model-qwen2.5-coder-0.5b model-gemma3-270m model-all-minilm-l6-v2
model-%:
	@if $(BIN)/promptflow models path $* >/dev/null 2>&1; then echo "[skip] model $*: done"; \
	else echo "[model $*]" && $(BIN)/promptflow models get $*; fi
# The tests' small model in a format that decodes two to three times as fast as the one published.
model-%-q4_0: model-%
	@if $(BIN)/promptflow models path $*-q4_0 >/dev/null 2>&1; then echo "[skip] model $*-q4_0: done"; \
	else echo "[model $*-q4_0]" && $(BIN)/promptflow models requantize $* --type q4_0 --no-compare; fi

$(DONE)/index: $(wildcard docs/*) indexes/guide/index.toml
	@$(BIN)/promptflow index build guide
	@touch $@
