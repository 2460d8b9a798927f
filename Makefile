# cxrstack: each target is a thin call of a command; `make help` lists them.
SHELL := /bin/bash -o pipefail
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3)
PY := .venv/bin/python
# onnxruntime and onnxruntime-gpu hold the same module: one of them, the GPU's where a driver is.
ONNX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
SHARDS ?= shards-out
RUN ?= runs/$(RECIPE)
RECIPE ?= network-c
MODEL ?= $(RUN)/model.onnx
SCORES ?= $(RUN)/scores
# OUT names what a target writes: the shards for `make shards`, the scores for `make score`.
OUT ?=
GPUS ?= 1
DEMO ?= demo-out
ARGS ?=

.PHONY: help setup test soak browser decoders peers lint demo shards train paper export score evaluate report bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.done ## the .venv with the exact versions of constraints.txt (ONNX=cpu or gpu)

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"error: Python 3.11 or 3.12 is needed, found {v[0]}.{v[1]}; give one with PYTHON=...")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(ONNX),dev]'
	touch $@

# Two processes, whose threads share the cores: those that wait sleep at once.
PYTEST = OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -n 2 --dist loadfile
test: setup ## the tests, but for the long ones and those that need a GPU
	$(PYTEST) -m "not soak" $(ARGS)

soak: setup ## the long tests: kills, fuzzing, an S3 server, a Ray cluster, a browser
	$(PYTEST) -m soak $(ARGS)

browser: ## Debian's Chromium, which the tests of the report drive
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

decoders: ## Debian's dcmtk, GDCM and libvips, which the long tests compare our pixels with
	command -v dcmj2pnm && command -v gdcmconv && command -v vips || { apt-get update -qq && apt-get install -y -qq --no-install-recommends dcmtk libgdcm-tools libvips-tools; }

peers: setup ## torchxrayvision and MosaicML Streaming, for the benchmarks only
	$(PY) -m pip install --constraint constraints.txt torchxrayvision transformers brotli catalogue xxhash zstd python-snappy
	$(PY) -m pip install --no-deps mosaicml-streaming==0.13.0  # its bound on numpy (<2.2) is older than ours

lint: setup ## ruff check, ruff format, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

demo: setup ## everything, on synthetic radiographs, on a CPU, in minutes
	$(PY) -m bench demo --out $(DEMO) $(ARGS)

shards: setup ## NIH=DIR COVID=DIR OUT=DIR [ALLOW_MISSING=1]: raw data sets -> shards
	@test -n "$(NIH)$(COVID)" || { echo "error: give NIH=DIR (ChestX-ray14) or COVID=DIR (the Radiography Database), or both" >&2; exit 2; }
	$(if $(NIH),$(PY) -m ingest chestxray14 --src "$(NIH)" --out "$(or $(OUT),$(SHARDS))" $(if $(ALLOW_MISSING),--allow-missing) $(NIH_ARGS))
	$(if $(COVID),$(PY) -m ingest covid-radiography --src "$(COVID)" --out "$(or $(OUT),$(SHARDS))" $(COVID_ARGS))
	$(PY) -m shards verify "$(or $(OUT),$(SHARDS))"

# torchrun takes 1 thread too, and says so in four lines; on a CPU a training takes its share of the cores.
TRAIN = $(if $(filter 1,$(GPUS)),$(PY) -m train,OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv/bin/torchrun --standalone --nproc-per-node $(GPUS) -m -- train)
train: setup ## RECIPE=network-c SHARDS=DIR RUN=DIR [GPUS=n] [ARGS="--size 224 ..."]
	$(TRAIN) $(RECIPE) --shards "$(SHARDS)" --run "$(RUN)" $(ARGS)

paper: setup ## SHARDS=DIR OUT=DIR [CHEXNET=FILE] [GPUS=n] [ARGS NIH_ARGS COVID_ARGS]: networks A to E
	@test -n "$(CHEXNET)" || echo "no CHEXNET=FILE: networks D and E start from our own chestxray14-densenet121" >&2
	$(call network,chestxray14-densenet201,$(NIH_ARGS))
	$(if $(CHEXNET),,$(call network,chestxray14-densenet121,$(NIH_ARGS)))
	$(call network,network-a,$(COVID_ARGS))
	$(call network,network-b,$(COVID_ARGS) $(call after,chestxray14-densenet201) --skip-stages 1)
	$(call network,network-c,$(COVID_ARGS) $(call after,chestxray14-densenet201) --skip-stages 1)
	$(call network,network-d,$(COVID_ARGS) $(CHEXNET_START))
	$(call network,network-e,$(COVID_ARGS) $(CHEXNET_START))
	$(PY) -m train compare $(foreach n,a b c d e,"$(PAPER)/network-$(n)") --out "$(PAPER)/figure-1.png"

PAPER = $(or $(OUT),runs/paper)
# The run of recipe $(1) with the settings $(2), in its own folder; a finished one is left as it is.
network = $(TRAIN) $(1) --shards "$(SHARDS)" --run "$(PAPER)/$(1)" $(ARGS) $(2)
after = --start.kind checkpoint --start.path "$(PAPER)/$(1)"
CHEXNET_START = $(if $(CHEXNET),--start.kind chexnet --start.path "$(CHEXNET)",$(call after,chestxray14-densenet121))

export: setup ## RUN=DIR [MODEL=FILE]: a finished run -> ONNX
	$(PY) -m serve export --run "$(RUN)" --out "$(MODEL)" $(ARGS)

score: setup ## MODEL=FILE ARCHIVE="FILES" [OUT=DIR]: score archives into Parquet
	@test -n "$(ARCHIVE)" || { echo "error: give ARCHIVE=... (shards, tar, tar.gz, zip or folders)" >&2; exit 2; }
	$(PY) -m serve score --model "$(MODEL)" --out "$(or $(OUT),$(SCORES))" $(ARCHIVE) $(ARGS)

evaluate: setup ## RUN=DIR LABELS=DIR [SCORES=DIR]: scores against labels
	@test -n "$(LABELS)" || { echo "error: give LABELS=... (the folder of a data set's shards, or a table of labels)" >&2; exit 2; }
	$(PY) -m serve evaluate --scores "$(SCORES)" --labels "$(LABELS)" --out "$(RUN)/evaluation" $(ARGS)

report: setup ## RUN=DIR [RUN2=DIR]: one HTML page, of two runs side by side
	$(PY) -m serve report --run "$(RUN)" $(if $(RUN2),--run "$(RUN2)") --out "$(RUN)/report.html" $(ARGS)

bench: setup ## all benchmarks, peers in the same run: table and plot
	$(PY) -m bench all --out bench-out $(ARGS)

clean: ## remove what make wrote, not the .venv
	rm -rf build bench-out $(DEMO) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
