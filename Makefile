# Everything a fresh machine needs is Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin
PORT ?= 8000
# Through the environment, not the command line: a prompt may hold quotes.
export PROMPT ?= a red circle moving right on a white background

.PHONY: help demo test serve api check bench eval soak doctor docs promises fuzz image-test pictures clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    one video from a prompt, on this machine, no GPU (PROMPT='...' for your own)"
	@echo "make test    the whole test suite"
	@echo "make check   lint, types, generated files, what must agree, Dockerfile, workflows"
	@echo "make serve   RunPod's local test server on http://localhost:$(PORT) (POST /runsync)"
	@echo "make api     the HTTP API on http://127.0.0.1:$(PORT): submit, watch, fetch"
	@echo "make bench   the figures in the README and docs/performance.md, measured again"
	@echo "make image-test  build the image, push, pull and run it (root, buildah, debootstrap)"
	@echo "make doctor  is this machine fit? weights, GPU, ffmpeg, bucket, folders"
	@echo "make soak    a thousand mixed and faulted jobs: does anything grow? (half an hour)"
	@echo "make eval    does the tiny Wan draw what 200 unseen captions say? (about ten minutes)"
	@echo "make promises  run the tests behind docs/promises.md and write it anew"
	@echo "make fuzz    20,000 requests and 5,000 images that nobody would think of"
	@echo "make docs    write what is generated anew: schema, images, tables (docs/generate)"
	@echo "make pictures  the page's pictures in docs/, taken anew (needs chromium)"
	@echo "make clean   remove .venv and outputs (weights stay)"

demo: $(BIN)/.ready models/.tiny
	$(BIN)/python demo.py

# By files, which share what their fixtures make. Four processes, also on two cores: many tests wait
# for a server that they started. More would need more memory than a small runner has.
test: $(BIN)/.ready
	$(BIN)/python -m pytest -n 4 --dist loadfile

serve: $(BIN)/.ready models/.tiny
	$(BIN)/python handler.py --rp_serve_api --rp_api_port $(PORT)

api: $(BIN)/.ready models/.tiny
	PYTHONPATH=src API_PORT=$${API_PORT:-$(PORT)} $(BIN)/python -m wan_worker.api

check: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-cache
	PYTHONPATH=src $(BIN)/python -m docs.generate --check
	$(BIN)/hadolint Dockerfile
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

# Needs the standard library only, so no .venv that root would own.
image-test:
	$(PYTHON) -B -m tests.image.run

# One thread: tensors this small gain nothing from more.
eval: $(BIN)/.ready
	PYTHONPATH=src OMP_NUM_THREADS=1 $(BIN)/python -m training.evaluate --report training/report.json

soak: $(BIN)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py --report tests/soak.json

doctor: $(BIN)/.ready
	PYTHONPATH=src $(BIN)/python -m wan_worker.doctor

docs: $(BIN)/.ready
	PYTHONPATH=src $(BIN)/python -m docs.generate
	$(BIN)/python -m tests.promises_page

promises: $(BIN)/.ready
	$(BIN)/python -m tests.promises_page --run

pictures: $(BIN)/.ready
	PYTHONPATH=src OMP_NUM_THREADS=1 $(BIN)/python -m tests.integration.page_pictures

fuzz: $(BIN)/.ready
	PYTHONPATH=src $(BIN)/python -W ignore -m tests.fuzz --requests 20000 --images 5000 \
		--report docs/fuzz.json

bench: $(BIN)/.ready models/.tiny
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/job.py
	$(BIN)/python benchmarks/estimates.py
	$(BIN)/python benchmarks/polling.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/levers.py
	PYTHONPATH=src $(BIN)/python -m docs.generate

# Torch first and by its exact version: an open range would pull gigabytes of CUDA packages.
$(BIN)/.ready: requirements.txt requirements-dev.txt
	@echo "Setting up .venv: a minute or two, about 2 GB"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -o '^torch==[^ ]*' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

models/.tiny: $(BIN)/.ready src/wan_worker/weights/tiny.py src/wan_worker/catalog/models.py $(wildcard weights/tiny/*/*)
	$(BIN)/python download_weights.py --tiny
	@touch $@

clean:
	rm -rf .venv outputs
