# Octavo. `make` alone prints this help.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup protos reference lint test demo up bench bench-gpu images clean

help: ## Show what make can do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@# The client of Triton servers, for tests: it asks for older protobuf and ml-dtypes than ours and works with ours.
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps tritonclient python-rapidjson
	@touch $@

setup: $(READY) ## Make .venv with everything the suite needs

protos: $(READY) ## Generate octavo/v1 and octavo/open_inference from protos/
	$(BIN)/python protos/generate.py

reference: $(READY) ## Write docs/reference from the code
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/reference/generate_cli.py

lint: $(READY) ## Check style, types and contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint octavo/v1/contract.binpb --config buf.yaml
	$(BIN)/buf format --diff --exit-code --path protos .

test: lint ## Check everything and run all tests
	$(BIN)/pytest --numprocesses 2 --dist worksteal

demo: $(READY) ## The whole life of a model on real text (DATA=file.txt for your own)
	$(BIN)/python -m examples.demo $(if $(DATA),--data $(DATA))

up: $(READY) ## Start every program and stay
	$(BIN)/octavo up

bench: $(READY) ## Measure all: training, generation beside peers, streaming, servers
	$(BIN)/python -m benchmarks

bench-gpu: $(READY) ## Verify and measure serving on a CUDA device (the checks alone, without one)
	$(BIN)/python -m benchmarks gpu

images: ## Build the container image
	docker build --tag octavo:dev .

clean: ## Remove what was built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
