# The worker's image: python, libraries, weights, code. Weights hardly ever change, libraries a few
# times a year, code daily; the final stage copies them in that order, so each change moves only what
# comes after it. BuildKit caches a COPY between stages by content: a new library version, or a
# change to the download tool, downloads the weights again, and leaves their layers as they were.
#
#   docker buildx bake t2v          the variants are in docker-bake.hcl
#   docker build --build-arg MODELS="wan2.1-t2v-1.3b" --secret id=HF_TOKEN,env=HF_TOKEN .
ARG BASE_IMAGE=python:3.11.15-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS base
# gcc and the C library's headers: Triton compiles each kernel's launcher at run time. Versions are
# the Debian release's own: pinned ones vanish from the mirrors with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app


FROM base AS libraries
# Torch brings its CUDA libraries along, so the base needs none. The CPU build instead:
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt ./
# A venv, because Debian's own Python (a base image like any other) refuses to be installed into.
RUN python3 -m venv /opt/venv && pip install --no-cache-dir -r requirements.txt


FROM libraries AS weights
# What download_weights.py imports and nothing else: other code changes must not come near this.
COPY download_weights.py ./
COPY weights/tiny weights/tiny
COPY src/wan_worker/__init__.py src/wan_worker/errors.py src/wan_worker/settings.py src/wan_worker/
COPY src/wan_worker/catalog/__init__.py src/wan_worker/catalog/components.py \
     src/wan_worker/catalog/distilled.py src/wan_worker/catalog/magcache_ratios.py \
     src/wan_worker/catalog/models.py src/wan_worker/catalog/transformer_config.py \
     src/wan_worker/catalog/
COPY src/wan_worker/weights/__init__.py src/wan_worker/weights/download.py \
     src/wan_worker/weights/hub.py src/wan_worker/weights/real_esrgan.py \
     src/wan_worker/weights/safetensors_file.py src/wan_worker/weights/store.py \
     src/wan_worker/weights/tiny.py src/wan_worker/weights/
# Catalog ids, separated by spaces. Empty: no weights in the image (the slim variant).
# Written by `make docs`: default models.
ARG MODELS="wan2.1-t2v-1.3b wan2.1-i2v-14b-480p"
# End.
# A Hub repository (ENHANCER_MODEL's): the language model that rewrites prompts. Empty: without one.
ARG ENHANCER=""
# Not empty: toy weights in place of real ones, for testing the image without a download.
ARG TINY=""
# Every component gets a folder of its own under /layers, empty where MODELS don't need it, so that
# the copies below need not know MODELS. The token is mounted, and never part of a layer.
# hadolint ignore=SC2086
RUN --mount=type=secret,id=HF_TOKEN \
    if [ -n "$MODELS$ENHANCER" ]; then \
      HF_TOKEN="$(cat /run/secrets/HF_TOKEN 2>/dev/null || true)" \
        python download_weights.py ${TINY:+--tiny} --dest /weights \
          ${MODELS:+--models $MODELS} ${ENHANCER:+--enhancer $ENHANCER}; \
    fi \
    && names="$(PYTHONPATH=src python -c 'from wan_worker.catalog.models import *; \
print(*[component.name for component in components_of([*MODELS, *EXTRAS])])')" \
    && for name in $names; do \
      mkdir -p "/layers/$name"; \
      if [ -d "/weights/$name" ]; then mv "/weights/$name" "/layers/$name/"; fi; \
    done \
    && mkdir -p /layers/enhancer \
    && for left in /weights/*; do \
      if [ -d "$left" ]; then mv "$left" /layers/enhancer/; fi; \
    done \
    && rm -rf /weights


# hadolint ignore=DL3006
FROM base
# One layer each, those that models share first.
# Written by `make docs`: weight layers.
COPY --from=weights /layers/umt5-tokenizer/ /models/
COPY --from=weights /layers/umt5-xxl/ /models/
COPY --from=weights /layers/wan2.1-vae/ /models/
COPY --from=weights /layers/real-esrgan-x4plus/ /models/
COPY --from=weights /layers/clip-image-processor/ /models/
COPY --from=weights /layers/clip-vit-h/ /models/
COPY --from=weights /layers/wan2.1-t2v-1.3b.transformer/ /models/
COPY --from=weights /layers/wan2.1-vace-1.3b.transformer/ /models/
COPY --from=weights /layers/wan2.2-vae/ /models/
COPY --from=weights /layers/wan2.2-ti2v-5b.transformer/ /models/
COPY --from=weights /layers/wan2.1-t2v-14b.transformer/ /models/
COPY --from=weights /layers/wan2.1-i2v-14b-480p.transformer/ /models/
COPY --from=weights /layers/wan2.1-i2v-14b-720p.transformer/ /models/
COPY --from=weights /layers/wan2.1-flf2v-14b-720p.transformer/ /models/
COPY --from=weights /layers/wan2.2-t2v-a14b.transformer/ /models/
COPY --from=weights /layers/wan2.2-t2v-a14b.transformer_2/ /models/
COPY --from=weights /layers/wan2.2-i2v-a14b.transformer/ /models/
COPY --from=weights /layers/wan2.2-i2v-a14b.transformer_2/ /models/
COPY --from=weights /layers/wan2.1-t2v-14b.turbo/ /models/
COPY --from=weights /layers/wan2.1-i2v-14b-480p.turbo/ /models/
COPY --from=weights /layers/wan2.2-t2v-a14b.turbo-high/ /models/
COPY --from=weights /layers/wan2.2-t2v-a14b.turbo-low/ /models/
COPY --from=weights /layers/wan2.2-i2v-a14b.turbo-high/ /models/
COPY --from=weights /layers/wan2.2-i2v-a14b.turbo-low/ /models/
COPY --from=weights /layers/enhancer/ /models/
# End.

COPY --from=libraries /opt/venv /opt/venv

# Offline: a worker that could fetch would hide a missing file until the day the Hub is down.
# NVIDIA_*: what CUDA base images set, for runtimes that inject the driver only when asked.
# RUNPOD_LOG_LEVEL: the SDK's own default, DEBUG, logs every result with its presigned URLs.
ENV MODELS_DIR=/models \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RUNPOD_LOG_LEVEL=INFO

COPY schemas schemas
COPY handler.py download_weights.py test_input.json ./
COPY src src
# Compiled here once, not by every cold start.
RUN python -m compileall -q src handler.py

# Root, on purpose: RunPod mounts network volumes for root only, and gives each worker a container
# of its own.
CMD ["python", "-u", "handler.py"]
