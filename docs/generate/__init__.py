"""Writes files from the code, and checks what must agree with it: `make docs`, `make check`.

A new model is one entry in src/wan_worker/catalog/models.py, a new image is one in
catalog/image_variants.py, a new solver is one in planning/solvers.py. Then `make docs` writes:

- schemas/request.schema.json: the enums of models, presets and solvers
- Dockerfile, docker-bake.hcl, .github/workflows/build.yml, .runpod/hub.json: layers and variants
- README.md, docs/*.md: the tables; docs/*.svg: the plots
- tests/golden/*.md: the models that ``auto`` takes, and the memory planner's results

Each file or block says that it is generated. Only the two JSON files can't say it: RunPod reads
hub.json, and the schema is part of the HTTP API's document. Prose is not generated: if a model has
no MagCache ratios or distilled weights, name it in the schema's description of ``acceleration``
too. When models.py is near 400 lines, move class Model to catalog/model.py, and the entries to
modules by family (catalog/wan2_1.py, ...).

To generate another file, add a line to ``registry.GENERATED``. `make check` fails if a file has
drifted, or if a rule (``rules``) is broken.
Not covered: docs/promises.md (tests.promises_page).
"""
