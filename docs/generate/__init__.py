"""What is written from the code, and what must agree with it: `make docs`, `make check`.

A new model is one entry in src/wan_worker/catalog/models.py, a new image one in
catalog/image_variants.py, a new solver one in planning/solvers.py. Then `make docs` writes:

- schemas/request.schema.json: the enums of models, presets and solvers
- Dockerfile, docker-bake.hcl, .github/workflows/build.yml, .runpod/hub.json: layers and variants
- README.md, docs/*.md: the tables; docs/*.svg: the plots
- tests/golden/*.md: what ``auto`` takes, and what comes out of the memory planner

Each file or block says that it is written so, but for the two JSON files, which can't: RunPod reads
hub.json, and the schema is part of the HTTP API's document. Prose is not written: a model without
MagCache's ratios or distilled weights is also named where the schema describes ``acceleration``.
Where models.py comes near 400 lines, class Model moves to catalog/model.py, and the entries to
modules by family (catalog/wan2_1.py, ...).

To generate another file, add a line to ``registry.GENERATED``. `make check` fails where a file has
drifted, and where a rule (``rules``) is broken.
Not covered: docs/promises.md (tests.promises_page).
"""
