# Two commands set up everything they need on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools

.PHONY: quickstart test walk coverage faults lint docs bench clean

quickstart: $(READY)
	$(BIN)/python -m simsiam quickstart

# Two files at once, each on one core: most tests wait for start-ups or run small networks.
test: $(TOOLS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The README's commands in its order, each made small, in build/walk.
walk: $(TOOLS)
	$(BIN)/python benchmarks/walk.py

# The suite with the lines counted that it runs, also in what it starts and kills; below 90% of simsiam/ it fails.
coverage: $(TOOLS)
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# What kills, cuts and waits for an hour. `make faults RELEASE=1` has 500 kills in a row instead of 200.
faults: $(TOOLS)
	OMP_NUM_THREADS=1 RELEASE=$(RELEASE) $(BIN)/python -m pytest -n 2 --dist loadfile -m faults

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Ratios measured by turns on this machine's CPU, meant for a quarter of an hour with nothing beside it; all of them in
# one table at the end.
bench: $(READY)
	mkdir -p build && rm -f build/bench.md
	$(BIN)/python benchmarks/optim.py --append build/bench.md
	$(BIN)/python benchmarks/syncbn.py --append build/bench.md
	$(BIN)/python benchmarks/step.py --batch-size 8 --steps 1 --rounds 3 --seconds 150 --against fp32+nchw --append build/bench.md
	$(BIN)/python benchmarks/knn.py --rounds 3 --append build/bench.md
	$(BIN)/python benchmarks/scaling.py --ranks 1,2 --rounds 2 --append build/bench.md
	$(BIN)/python benchmarks/scaling.py --ranks 1,2 --encoder resnet18 --size 64 --batch-size 16 --steps 5 --rounds 2 --append build/bench.md
	$(BIN)/python benchmarks/peers.py --rounds 3 --append build/bench.md
	$(BIN)/python benchmarks/startup.py --append build/bench.md
	$(BIN)/python benchmarks/report.py build/bench.md

# The pages, with their links checked, in build/site.
docs: $(TOOLS)
	$(BIN)/python -m mkdocs build --strict

# Both are made again only where the dependencies changed. What runs the package, and what tests it.
$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(TOOLS): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
