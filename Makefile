# One line each, on a machine with Python 3.10 to 3.12 and nothing else:
#   make demo         sets up .venv and runs the demo
#   make vision-demo  the same for a vision transformer
#   make test         sets up .venv and runs lint, types and tests
#   make docs         the documentation site, in build/site
#   make thorough     the tests that 'make test' leaves out because they take long
#   make slow         real models, long runs and, where it is installed, SLURM
#   make gpu          benchmarks/gpu.py, with the torch that is there
#   make build        the wheel and the sdist, in dist/, and whether they hold what they should
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
COMPILED = $(VENV)/.compiled
# A process that tests start reads compiled modules; without, each of them compiles for seconds.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo vision-demo test tests thorough lint format-check rooms types docs build slow slurm gpu install clean

demo: install
	$(BIN)/sae-baselines demo $(ARGS)

vision-demo: install
	$(BIN)/sae-baselines vision demo $(ARGS)

test: lint tests

TESTS = $(BIN)/python -m pytest -n $${TEST_WORKERS:-3} --dist loadfile --no-loadscope-reorder

tests: $(COMPILED)
	$(TESTS) -m "not slow and not thorough"

# More cases of what the tests hold, and the benchmarks' own runs.
thorough: install
	$(TESTS) -m thorough

lint: format-check rooms types

format-check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Imports run one way (pyproject.toml, docs/architecture.md).
rooms: install
	$(BIN)/lint-imports --no-cache --no-logo

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

# Strictly: a link or an anchor that leads nowhere stops it. Nothing is fetched. The tutorial is
# run, a minute or two, where code changed since. (The theme's notice about mkdocs 2 is no news.)
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

build: install
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python .ci/contents.py dist

# Real models and long runs; needs the demo's downloads.
slow: install
	$(BIN)/python -m pytest -m slow
	@if [ -x /usr/sbin/slurmctld ]; then $(MAKE) slurm; else \
	echo "not run: make slurm, for which apt-get install slurm-wlm munge"; fi

# Two nodes of SLURM on this machine, and what kills their jobs; as root, some 25 minutes.
slurm: install
	PYTHONPATH=. $(BIN)/python tests/slurm/faults.py $(ARGS)

# On a machine with a GPU, torch and no network; WHEELS is a folder with whatever else it lacks.
gpu:
	$(if $(WHEELS),$(PYTHON) -m pip install --no-index --no-deps $(WHEELS)/*.whl)
	PYTHONPATH=. $(PYTHON) benchmarks/gpu.py $(ARGS)

install: $(STAMP)

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# uv does in half a minute what takes pip two and a half; where it cannot (a mirror that only pip
# is told of), pip does it. Torch by pip, whose settings are where a CPU build is chosen.
# Without compiling: what is imported, a quarter of it, is compiled then, and on every core.
# SAEBench requires torchvision but imports it nowhere; transformers imports it where it finds it,
# and one that was built for another torch (a CPU build, say) then breaks every suite. With one that has
# no VideoReader any more, datasets before 4 reads no tokens.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v[:2] <= (3, 12) else f"Python 3.10 to 3.12 is needed, this is {v[0]}.{v[1]}; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,bench]' || $(PIP) -e '.[dev,bench]'
	$(BIN)/python -c 'from torchvision.io import VideoReader' 2>/dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchvision
	touch $(STAMP)

# Else every worker compiles what it imports and each test, and all of them the same at once. What
# cannot be collected is said by the tests.
$(COMPILED): $(STAMP)
	-$(BIN)/python -m pytest --collect-only -qq > /dev/null 2>&1
	touch $(COMPILED)

clean:
	rm -rf $(VENV) build dist
