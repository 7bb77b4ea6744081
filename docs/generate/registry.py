"""Which files are generated, and what writes each of them?

A file that is new here is a line in ``GENERATED``: its path in the repository, and a function from
the text that it holds now (empty where there is no file yet) to the text that it should hold.
Not covered: files that nothing but a person decides on, and what they must agree with (rules).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from docs.generate import catalog_files, choice_table, figures, memory_table, rooms, tables
from docs.generate.blocks import with_tables

Generate = Callable[[str], str]

GENERATED: Final[Mapping[str, Generate]] = {
    # First: the table of fields is made from it.
    "schemas/request.schema.json": catalog_files.request_schema,
    "Dockerfile": catalog_files.dockerfile,
    "docker-bake.hcl": catalog_files.bake,
    ".github/workflows/build.yml": catalog_files.release_workflow,
    ".runpod/hub.json": catalog_files.hub_listing,
    "README.md": partial(with_tables, tables={"figures": figures.figures_table}),
    "docs/requests.md": partial(with_tables, tables=tables.REQUESTS),
    "docs/operating.md": partial(with_tables, tables=tables.OPERATING),
    "docs/performance.md": partial(with_tables, tables=figures.TABLES),
    "docs/stages.svg": lambda _: figures.stages_plot(),
    "docs/memory.svg": lambda _: figures.memory_plot(),
    "docs/rooms.svg": lambda _: rooms.draw(),
    "tests/golden/auto.md": lambda _: choice_table.table(),
    "tests/golden/memory.md": lambda _: memory_table.golden(),
}
"""By path in the repository, in the order in which they are written."""
