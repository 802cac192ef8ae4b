# Two commands do everything: `make quickstart` and `make test`. Each makes .venv and installs first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart install test test-slow mutants fuzz kills lint benchmark peer-schnetpack peer-sgdml peer-mace \
	peer-deepxde clean

quickstart: $(VENV)/.installed
	$(BIN)/dcase quickstart --out quickstart --overwrite

# One OpenMP thread: the exact-resume tests of tblite need it, and small tensors are no slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not gpu"

# QM9 as a whole comes with a package of 100 MB, which only a slow test reads.
test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[qm9]'
	$(PYTEST) -m "slow and not gpu"

# Breaks the code, one line at a time, and tells which breaks no test notices: half an hour, resumable.
# ONLY=md tries those whose file or area has that in it.
mutants: $(VENV)/.installed-dev
	$(BIN)/python tests/mutation/mutate.py --jobs 2 --only '$(ONLY)' --out mutants.json

# Damaged files of every kind: what their readers make of them. TRIALS=1000 for more.
TRIALS ?= 100
fuzz: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_campaign.py --trials $(TRIALS)

# Kills runs of every kind, goes on, and compares with no kill: a quarter of an hour. KILLS=100 for
# more, KIND=train for those with this in their names.
KILLS ?= 20
kills: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/campaigns/kill.py $(KILLS) $(KIND)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p dcase

install: $(VENV)/.installed

# torch goes first, by its exact version: anything else that needs torch then takes that build.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("dcase needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Libraries that benchmarks compare with, each in an environment of its own.
peer-schnetpack: benchmarks/peers/.venv-schnetpack/.installed
peer-sgdml: benchmarks/peers/.venv-sgdml/.installed
peer-mace: benchmarks/peers/.venv-mace/.installed
peer-deepxde: benchmarks/peers/.venv-deepxde/.installed

benchmarks/peers/.venv-%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
