# What contributors run. Each target is one command that can also be typed.
.PHONY: help install lint test nightly gpu demo docs
PYTHON ?= python

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: ## install the project, editable, with what the tests need
	$(PYTHON) -m pip install -c .ci/constraints.txt -e '.[test]'

lint: ## style only; `ruff format .` and `ruff check --fix .` mend most of it
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test: ## everything that a change must pass: style, types, tests, doctests (7 to 15 minutes on two cores)
	bash tests/run.sh

nightly: ## the same, with the tests that take minutes
	bash tests/run.sh --nightly

gpu: ## the tests that need a CUDA device
	bash tests/run.sh --gpu

demo: ## power sampling against plain sampling on the pocket model, in under a minute
	$(PYTHON) examples/quickstart.py

docs: ## run the examples in docstrings; check every link and path in the Markdown files
	$(PYTHON) -m pytest -q lm_power distill tests/test_documents.py
