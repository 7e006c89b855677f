# Two commands: `make demo` (everything, to a registered student) and `make test` (everything that is checked).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
PROFILE ?=
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
export GX_ANALYTICS_ENABLED := false
export HF_HUB_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0

ABLATION := pipelines/ablation/dvc.yaml
.PHONY: help demo ablation test check unit e2e e2e-kill e2e-smoke e2e-team e2e-ray ui clean
help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# The environment is made anew whenever the lock or the project file changes.
.venv/ready: requirements.lock pyproject.toml
	@command -v "$(PYTHON)" > /dev/null || { echo "error: $(PYTHON) not found; install it, or name another 3.11 or 3.12: make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2> /dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	rm -rf .venv
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch .venv/ready

# The sizes need nothing of each other. On a CPU one training per half of the cores gets more done than one after the
# other on all of them; on a GPU it does not. DVC repeats nothing in the last `dvc repro`, which is the rest of the road.
AT_ONCE ?= $(if $(shell command -v nvidia-smi),1,2)
THREADS_EACH = $(shell echo $$(( $$(nproc) > $(AT_ONCE) ? $$(nproc) / $(AT_ONCE) : 1 )))
demo: export SANA_SPRINT_OWNER := $(shell echo $$PPID)
demo: .venv/ready ## the whole road on the profile of params.yaml (PROFILE=digits switches it)
	@test -z "$(PROFILE)" || sana-sprint use "$(PROFILE)"
	@sana-sprint recover
	dvc repro teacher judge
	@$(MAKE) --no-print-directory -j$(AT_ONCE) $$(dvc stage list --name-only | sed -n 's/^distill@/student@/p')
	dvc repro
	@sana-sprint summary

student@%: export SANA_SPRINT_THREADS ?= $(if $(filter 1,$(AT_ONCE)),,$(THREADS_EACH))
student@%: .venv/ready
	dvc --wait-for-lock repro --single-item prune@$* convert@$* distill@$* schedule@$* 2>&1 | (trap '' INT; exec sed --unbuffered 's/^/$*: /')

ablation: .venv/ready ## distils again with keys changed, a seed a core at once, and tells what each is worth; VARIANTS="sprint scm" for some
	@sana-sprint recover
	dvc repro prune convert
	python pipelines/ablation/variant.py --ahead $(VARIANTS)
	dvc repro $(if $(VARIANTS),$(VARIANTS:%=$(ABLATION):variant@%),$(ABLATION))
	$(if $(VARIANTS),dvc repro --single-item $(ABLATION):table)

test: check unit e2e ## lint, types, floors, unit tests, the smoke profile end to end

check: .venv/ready ## lint, types, floors
	ruff check .
	ruff format --check .
	mypy
	lint-imports

unit: .venv/ready ## unit tests, two files at a time
	@command -v chromium chromium-browser google-chrome > /dev/null || { echo "error: the tests of pages drive Chromium; on Debian: apt install chromium"; exit 1; }
	@compgen -G "/usr/lib/postgresql/*/bin/initdb" > /dev/null || { echo "error: the tests of the team's server start PostgreSQL; on Debian: apt install postgresql"; exit 1; }
	OMP_NUM_THREADS=1 python -m pytest -m "not e2e and not gpu" --numprocesses 2 --dist loadfile

# Four processes, each of which waits half of its time for servers and stages. Those of tests/e2e share one finished
# `make demo`; the first of them makes it.
e2e: .venv/ready ## the smoke profile in a temporary clone, killed and resumed; a team's server; Ray
	@place=$$(mktemp -d) && trap 'rm -rf "$$place"' EXIT && \
		SMOKE_CLONE="$$place" $(MAKE) --no-print-directory --jobs 4 --output-sync=target e2e-kill e2e-smoke e2e-team e2e-ray

e2e-kill:
	python -m pytest -m e2e tests/e2e/test_kill.py

e2e-smoke:
	python -m pytest -m e2e tests/e2e --ignore tests/e2e/test_kill.py

e2e-team:
	python -m pytest -m e2e tests/team tests/registry

e2e-ray:
	python -m pytest -m e2e --ignore tests/e2e --ignore tests/team --ignore tests/registry

ui: .venv/ready ## MLflow's page on http://127.0.0.1:5000
	@echo "open http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/data/mlflow/mlflow.db}" --host 127.0.0.1 --port 5000

clean: ## removes the virtual environment and all outputs, keeps your own pictures
	rm -rf .venv data/raw data/models data/latents data/metrics data/plots data/grids data/reports data/mlflow data/checkpoints data/cache .dvc/cache .dvc/tmp
