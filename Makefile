# `make demo` and `make test` need only Python 3.11+, make and a C library: they build .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM ?= true
unexport PYTHONDONTWRITEBYTECODE  # a start takes 1 s where Python may keep what it compiles, else 4; tests start hundreds

.PHONY: demo test lint docs bench crash lock clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml requirements.lock
	@echo "Setting up $(VENV): about 6 GB on Linux, most of it PyTorch. Half a minute to some minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.7"
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## classify real messages with the bundled models
	$(BIN)/tagstream run examples/sms.yaml --overwrite --show 12

lint: $(STAMP)  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf .typing && mkdir -p .typing/tagstream/models  # mypy knows no mapped packages: links with the installed names
	@ln -s $(addprefix $(CURDIR)/,$(wildcard api/*) schemas transforms pipelines) .typing/tagstream
	@ln -s $(CURDIR)/models/__init__.py .typing/tagstream/models
	$(BIN)/mypy

test: $(STAMP) lint  ## every test
	$(BIN)/python -m pytest

docs: $(STAMP)  ## the reference from the code, and the site in site/
	$(BIN)/python -m docs.make_reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

crash: $(STAMP)  ## the long crash tests: every kill that the guarantees speak of
	$(BIN)/python -m pytest -m crash --crash-long

bench: $(STAMP)  ## the README's figures
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.bulk
	$(BIN)/python -m benchmarks.engine
	$(BIN)/python -m benchmarks.stream
	$(BIN)/python -m benchmarks.warehouse
	$(BIN)/python -m benchmarks.shapes
	$(BIN)/python -m benchmarks.tasks
	$(BIN)/python -m benchmarks.flink

lock:  ## renew requirements.lock after a change of pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras pyproject.toml \
	  --output-file requirements.lock --generate-hashes --no-emit-index-url --no-header

clean:
	rm -rf $(VENV) out site .pytest_cache .mypy_cache .ruff_cache .hypothesis
