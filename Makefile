# Everything runs in a virtual environment, .venv, created on first use.
PYTHON ?= python3
BIN := .venv/bin
# A run never overwrites another one.
RUN ?= runs/tiny_cpu$(if $(wildcard runs/tiny_cpu),-$(shell date +%Y%m%d-%H%M%S))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup pretrain probe test test-oldest test-all docs check fix .venv-oldest

help:  ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: .venv/installed  ## Create .venv with the tested versions

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,docs,st,mteb,onnx,bench,lora]'
	@touch $@

pretrain: setup  ## Train the default encoder on the built-in corpus (RUN=folder)
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(shell $(PYTHON) -c 'import os; print(os.cpu_count())') \
		run_pretraining.py configs/tiny_cpu.yaml --output_dir $(RUN)

probe: setup  ## Evaluate the newest encoder (ENCODER=folder)
	$(BIN)/python run_probe.py $(ENCODER)

test: setup  ## Run the fast tests
	$(BIN)/python -m pytest -n auto --dist loadfile -m 'not slow and not distributed'

# What depends on the versions of the libraries, see CONTRIBUTING.md.
OLDEST := tests/data/test_batching.py tests/data/test_corpus.py tests/data/test_tokenization.py \
	tests/data/test_windows.py tests/encoders tests/probe/test_finetuning.py tests/probe/test_online.py tests/probe/test_run.py \
	tests/probe/test_tasks.py tests/share tests/test_backbones.py tests/test_configuration.py tests/test_document_loss.py \
	tests/test_end_to_end.py tests/test_integration.py tests/test_modeling.py \
	tests/test_objectives.py tests/test_own_loss.py tests/train

test-oldest: .venv-oldest/installed  ## Run the fast tests of models, data and runs with the oldest supported versions
	.venv-oldest/bin/python -m pytest -n auto --dist loadfile -m 'not slow and not distributed' $(OLDEST)

.venv-oldest: .venv-oldest/installed

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet -c constraints-oldest.txt torch
	.venv-oldest/bin/pip install --quiet -c constraints-oldest.txt -e '.[dev,st]'
	@touch $@

test-all: setup  ## Run all tests
	$(BIN)/python -m pytest

docs: setup  ## Build the documentation: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

check: setup  ## Check lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fix: setup  ## Fix lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
