# Each command sets up all it needs: a virtual environment in .venv, installed again only when its inputs change.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := runs/digits

.PHONY: demo test lint types docs clean

demo: $(STAMP)
	$(VENV)/bin/meanflow train digits --out $(RUN)
	$(VENV)/bin/meanflow sample $(RUN) --out $(RUN)/samples.png
	$(VENV)/bin/meanflow evaluate $(RUN)
	@echo
	@echo "picture: $(RUN)/samples.png (one network call each; one column a class)"

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)
	$(VENV)/bin/mypy

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet
	@echo "site: site/index.html"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meanflow needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
