# The interpreter that .venv is made with, unless it is there already: PYTHON=python3.12 make test
PYTHON ?= $(if $(wildcard .venv/.ready),.venv/bin/python,python3)

.PHONY: help environment demo test format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' Makefile

environment:  ## make .venv with the pinned versions, Detectron2 and this package (3 minutes once)
	@command -v $(PYTHON) >/dev/null || \
	    { echo "$(PYTHON) not found; name a Python 3.10 to 3.12: PYTHON=python3.12 make test" >&2; exit 1; }
	@$(PYTHON) tools/make_environment.py

demo: environment  ## train and evaluate a GW detector on drawn shapes (6 minutes on 2 cores)
	.venv/bin/python tools/train_net.py \
	    --config-file configs/quickstart/mask_rcnn_R_18_FPN_gw.yaml OUTPUT_DIR output/demo

test: environment  ## check the format, the code and the tests
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m ruff check
	.venv/bin/python -m pytest

format: environment  ## format the code, and mend what the linter can mend
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

clean:  ## remove .venv, builds and caches; output/ and datasets/ stay
	rm -rf .venv build dist gw_detectron.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
