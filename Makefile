# Two commands for everybody: `make demo` and `make test`. The rest is for those who work on Koubou.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test check check_static format up bench lan sim sim_gate chaos soak powercut clean

help:
	@echo 'make demo    the whole workshop on this machine, with simulated Ollamas: see it work'
	@echo 'make test    every test that needs no network'
	@echo 'make check   the gate: format, lint, types, who imports whom, tests'
	@echo 'make up      broker and agents of this home (KOUBOU_HOME, default ~/.koubou)'
	@echo 'make bench   cost of a decision, overhead, throughput, latency, as ratios in one run'
	@echo 'make lan     a LAN in a box: how well routing uses unequal boxes, simulated; table, build/lan.json, build/lan.svg'
	@echo 'make sim     the deterministic simulation: make sim SEEDS=10000, or one seed: make sim ONE=7'
	@echo 'make sim_gate  every mechanism switched off once: the simulation must notice'
	@echo 'make chaos   real processes killed, stopped and cut off, then everything read back: make chaos MINUTES=10 SEED=1'
	@echo 'make soak    steady load, does anything grow: make soak MINUTES=60'
	@echo 'make powercut  cut the power under a real broker, see what was promised: make powercut CUTS=200 SEED=1'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Koubou needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo 'Python cannot make virtual environments here; on Debian: apt-get install python3-venv' >&2; exit 1; }
	@echo 'setting up $(VENV) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/koubou-ctl demo $(DEMO)

test: $(READY)
	@$(BIN)/pytest -n $(JOBS) --dist loadgroup $(TESTS)

check_static: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: check_static
	$(BIN)/pytest -q -n $(JOBS) --dist loadgroup -m 'not slow'

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: $(READY)
	@$(BIN)/koubou-ctl up

bench: $(READY)
	@$(BIN)/python -m bench

# LAN='--scenario swaps --seed 7': one of them
lan: $(READY)
	@$(BIN)/python -m koubou_simulator.lan --folder build $(LAN)

SEEDS ?= 2000
sim: $(READY)
	@PYTHONPATH=tests $(BIN)/python -m sim.run $(if $(ONE),--seed $(ONE),--seeds $(SEEDS))

sim_gate: $(READY)
	@PYTHONPATH=tests $(BIN)/python -m sim.gate

MINUTES ?=
SEED ?= 1
chaos: $(READY)
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --minutes $(or $(MINUTES),10) --seed $(SEED)

soak: $(READY)
	@PYTHONPATH=tests $(BIN)/python -m chaos.soak --minutes $(or $(MINUTES),60) --seed $(SEED)

CUTS ?= 200
powercut: $(READY)
	@PYTHONPATH=tests $(BIN)/python -m powercut.run --cuts $(CUTS) --seed $(SEED)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
