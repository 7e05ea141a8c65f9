# The two commands of the README, and what one types twice. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin

help:
	@echo "make course     run every notebook, and make the site from what they computed: build/site"
	@echo "make site       make the site again, from the notebooks that make course ran"
	@echo "make test       check the code, then run the tests and every notebook in fast mode"
	@echo "make test-slow  the checks that take many minutes"
	@echo "make lab        open JupyterLab at the first notebook; LESSONS=zh_TW opens the Chinese ones"
	@echo "make translate  take changed messages into locale/, and make the Chinese edition from there"
	@echo "make clean      remove what make course and make test wrote"
	@echo
	@echo "CROPKIT_DATA=<folder>  your own photos, or grocery36      CROPKIT_ARCH=<name>  another model"
	@echo "CROPKIT_FAST=1  tiny, for a try      CROPKIT_PRECISION=float32 or bfloat16  instead of what the processor suggests"
	@echo "TORCH_INDEX=<address>  at the first make: where pip finds a CPU-only torch (see README)"

# Installs again only when pyproject.toml has changed.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@

course: .venv/installed
	$(BIN)/python tools/run_course.py

# Files in the order of their names: else those of few but long tests come last, and one core waits for the other.
test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	CROPKIT_FAST=1 OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist loadscope --no-loadscope-reorder \
		--nbval-lax --nbval-current-env --nbval-cell-timeout=300 tests notebooks

test-slow: .venv/installed
	$(BIN)/pytest -m slow -s tests

site: .venv/installed
	$(BIN)/python tools/build_site.py

translate: .venv/installed
	$(BIN)/python tools/translate.py

lab: .venv/installed
	$(BIN)/jupyter lab notebooks/$(if $(LESSONS),$(LESSONS)/)00_check_your_setup.ipynb

clean:
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
	@echo "Kept: data/ (photos) and .venv/ (installed packages). Delete them by hand to start from nothing."

.PHONY: help course site test test-slow translate lab clean
