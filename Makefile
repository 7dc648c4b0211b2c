# Where the environment is made, the interpreter that it is made with unless it is there already, and
# what is installed: PYTHON=python3.12 make test
VENV ?= .venv
PYTHON ?= $(if $(wildcard $(READY)),$(VENV)/bin/python,python3)
REQUIREMENTS ?= requirements.txt
READY = $(VENV)/.ready

.PHONY: help environment demo docs test test-gpu benchmark-gpu test-matrix format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

environment: $(READY)  ## make .venv with the pinned versions, Detectron2 and this package (3 minutes once)

$(READY): $(REQUIREMENTS) pyproject.toml tools/make_environment.py tools/install_detectron2.py
	@command -v $(PYTHON) >/dev/null || \
	    { echo "$(PYTHON) not found; name another, e.g.: PYTHON=python3.12 make test" >&2; exit 1; }
	@$(PYTHON) tools/make_environment.py $(VENV) $(REQUIREMENTS)
	@echo $(PYTHON) >> $@

# It is made anew for another PYTHON than the one that it was made with
ifeq ($(filter $(PYTHON),$(VENV)/bin/python $(shell cat $(READY) 2>/dev/null)),)
.PHONY: $(READY)
endif

demo: environment  ## train and evaluate a GW detector on drawn shapes (6 minutes on 2 cores)
	$(VENV)/bin/python tools/train_net.py --resume \
	    --config-file configs/quickstart/mask_rcnn_R_18_FPN_gw.yaml OUTPUT_DIR output/demo

docs: environment  ## renew docs/tour.md: run its commands, put their outputs in (10 minutes on 2 cores)
	$(VENV)/bin/python tools/make_docs.py docs/tour.md

test: environment  ## check the format, the code and the tests
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m ruff check
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# With what is installed. Most of the time is compiling Triton's kernels: in several processes, where
# pytest-xdist is there, of two threads each.
test-gpu:  ## run the tests that need a GPU, without making an environment (2 minutes)
	@$(PYTHON) -c "import torch; assert torch.cuda.is_available()" 2>/dev/null || \
	    { echo "make test-gpu: $(PYTHON) has no PyTorch that sees a GPU" >&2; exit 1; }
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" OMP_NUM_THREADS=2 \
	    $(PYTHON) -m pytest -m "gpu and not slow" $$($(PYTHON) -c "import xdist" 2>/dev/null && \
	    echo --numprocesses auto --maxprocesses 12 --maxschedchunk 1)

OUTPUT ?= output/benchmark-gpu
benchmark-gpu:  ## measure GW on a GPU, with what is installed, into OUTPUT (4 minutes)
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" \
	    $(PYTHON) tools/benchmark.py gpu --output $(OUTPUT)

test-matrix: environment  ## make test on every supported Python that is there, and with the oldest PyTorch
	$(VENV)/bin/python -m nox

format: environment  ## format the code, and mend what the linter can mend
	$(VENV)/bin/python -m ruff check --fix
	$(VENV)/bin/python -m ruff format

clean:  ## remove .venv, builds and caches; output/ and datasets/ stay
	rm -rf .venv .venvs build dist gw_detectron.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
