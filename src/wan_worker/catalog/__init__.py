"""Which models are there, of which parts, and what is published about them?

Promises: frozen tables; each constant names its source. A model is one entry: `make docs` writes
everything that follows from it (schema, Dockerfile, docker-bake.hcl, .runpod/, tables).
Not covered: where weights are (weights), which model a job takes (planning).
"""
