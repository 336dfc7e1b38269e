# `make serve` and `make test` work on a fresh checkout: they set .venv up themselves.
# Override on the command line: PYTHON=python3.12, MODEL=path-or-hub-id, ARGS="--prefill 0".
PYTHON ?= python3
VENV ?= .venv
MODEL ?=
ARGS ?=
BENCH ?= engine
CLIENTS_VENV ?= .venv-clients
TORCH = torch==2.13.0
TRITON = triton==3.9.0

BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
CLIENTS_STAMP = $(CLIENTS_VENV)/.installed
PIP_INSTALL = -m pip install --disable-pip-version-check --progress-bar on
PIP = $(BIN)/python $(PIP_INSTALL)

# Several workers run at once in the tests: each with torch's default of all cores, they would starve each other. And
# those that have several threads would, as they wait for one another, hold the cores that these wait for.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} $(BIN)/python -m pytest

DEFAULT = not gpu and not multi_gpu and not slow and not interpreter
FIRST = tests/system tests/bench tests/launch tests/deploy tests/decode

.PHONY: serve test test-rest test-gpu test-clients lint bench install lock clean

serve: $(STAMP)
	$(BIN)/isthmus serve $(MODEL) $(ARGS)

# Two processes side by side, as each computes on one core: one for what starts processes and clusters and a part of the
# others, so that both take about as long, which is shown as it runs; and one for the rest, shown when both have ended.
# With ARGS, all is run in one. (A shell's background processes do not hear of ^C: so the trap.)
test: $(STAMP)
ifeq ($(ARGS),)
	@trap 'kill 0' INT; \
	$(MAKE) -s test-rest >$(VENV)/test-rest.log 2>&1 & rest=$$!; \
	$(PYTEST) -m "$(DEFAULT)" $(FIRST); code=$$?; \
	wait $$rest || code=1; cat $(VENV)/test-rest.log; exit $$code
else
	$(PYTEST) -m "$(DEFAULT)" $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) -m interpreter tests/kernels
endif

test-rest: $(STAMP)
	$(PYTEST) -m "$(DEFAULT)" $(addprefix --ignore=,$(FIRST)); code=$$?; \
	TRITON_INTERPRET=1 $(PYTEST) -m interpreter tests/kernels && exit $$code

test-gpu: $(STAMP)
	$(PYTEST) -m "gpu or multi_gpu" $(ARGS)

# Other projects' clients, which need other versions of what we need: they have a venv of their own, and no torch.
test-clients: $(STAMP) $(CLIENTS_STAMP)
	ISTHMUS_PYTHON=$(abspath $(BIN)/python) $(CLIENTS_VENV)/bin/python -m pytest -c tests/clients/pytest.ini tests/clients $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p isthmus

bench: $(STAMP)
	$(if $(filter engine,$(BENCH)),OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2}) $(BIN)/python -m isthmus.bench.$(BENCH) $(ARGS)

install: $(STAMP)

# torch goes first and alone: its wheel differs by machine, and a later step must not replace it. Triton comes with
# CUDA builds of torch, in the version they need; elsewhere on Linux it is added.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Isthmus needs Python 3.11 to 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -r requirements.lock
	@test "$$(uname)" != Linux || $(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) $(TRITON)
	$(PIP) --no-deps --no-build-isolation -e .
	mkdir -p $(VENV)/path && ln -sfn ../.. $(VENV)/path/isthmus
	touch $@

$(CLIENTS_STAMP): tests/clients/requirements.txt tests/clients/constraints.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python $(PIP_INSTALL) -r tests/clients/requirements.txt
	touch $@

# Writes requirements.lock anew from pyproject.toml, on a machine whose torch is a CPU build. torch and triton are left
# out: see above.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install $(TORCH)
	$(VENV)-lock/bin/python -m pip install '.[dev]' setuptools
	(sed -n '/^#/p' requirements.lock; $(VENV)-lock/bin/python -m pip freeze --all \
	  | grep -viE '^(torch|triton|isthmus|pip|nvidia-(cu|nccl|nv)[-a-z0-9]*|cuda[-a-z]*)( @|==)') > requirements.new
	mv requirements.new requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(CLIENTS_VENV) build dist *.egg-info
