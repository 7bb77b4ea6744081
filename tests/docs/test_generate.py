"""What is generated is written where it belongs, and a drifted file is named. Drift of this
repository itself is for `make check` to find."""

import json
from pathlib import Path

import pytest
from docs.generate import catalog_files, figures, tables
from docs.generate.__main__ import drifted, write
from docs.generate.blocks import with_blocks, with_tables
from docs.generate.registry import GENERATED

from wan_worker.catalog.models import MODELS
from wan_worker.planning.solvers import SOLVERS

ROOT = Path(__file__).resolve().parents[2]


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# Of each file, something that the catalog or the code decides, and what it may have drifted to.
DRIFT = {
    "schemas/request.schema.json": ('        "wan2.1-vace-1.3b",\n', ""),
    "Dockerfile": ("/layers/clip-vit-h/", "/layers/clip-vit-g/"),
    "docker-bake.hcl": ('"t2v-i2v", "slim"]', '"t2v-i2v"]'),
    ".github/workflows/build.yml": ("t2v-i2v, slim]", "slim]"),
    ".runpod/hub.json": ("Wan 2.2 text to video A14B", "Wan 2.2"),
    "README.md": ("| a rejected job |", "| a job |"),
    "docs/requests.md": ("| `video_high` |", "| `video_hihg` |"),
    "docs/operating.md": ("| all of them |", "| some of them |"),
    "docs/performance.md": ("| **whole job** |", "| **job** |"),
    "docs/stages.svg": ("ours: upload", "ours: sending"),
    "docs/memory.svg": ("161 frames", "160 frames"),
    "docs/rooms.svg": ("15 packages", "14 packages"),
    "tests/golden/auto.md": ("| video + image |", "| video + picture |"),
    "tests/golden/memory.md": ("sequential 12.7", "sequential 12.8"),
}


@pytest.mark.parametrize("name", GENERATED)
def test_a_drifted_file_is_named_with_what_to_do_and_written_as_it_was(
    name: str, tmp_path: Path
) -> None:
    right, wrong = DRIFT[name]
    text = text_of(name)
    assert right in text
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.replace(right, wrong), "utf-8")
    one = {name: GENERATED[name]}
    assert list(drifted(tmp_path, one)) == [
        f"{name} has drifted from what it is written from: run `make docs`"
    ]
    write(tmp_path, one)
    assert file.read_text("utf-8") == text
    assert list(drifted(tmp_path, one)) == []


def test_a_file_that_is_not_there_yet_is_written(tmp_path: Path) -> None:
    new = {"new.md": lambda before: before + "text"}
    assert list(drifted(tmp_path, new)) != []
    write(tmp_path, new)
    assert (tmp_path / "new.md").read_text("utf-8") == "text"


def test_a_file_without_the_place_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n", "utf-8")
    (problem,) = drifted(tmp_path, {"Dockerfile": catalog_files.dockerfile})
    assert problem.startswith("Dockerfile can't be written: it has places for []")
    assert "add the place that is missing" in problem
    with pytest.raises(ValueError, match='no place "job_type"'):
        catalog_files.request_schema("{}")


def test_a_block_is_indented_as_its_place_and_the_rest_stays() -> None:
    text = "a: 1\n  # Written by `make docs`: one two.\n  old\n  # End.\nb: 2  # End.\n"
    made = with_blocks(text, {"one two": "new\n\nlines"})
    assert made == (
        "a: 1\n  # Written by `make docs`: one two.\n  new\n\n  lines\n  # End.\nb: 2  # End.\n"
    )


def test_a_table_without_a_place_and_a_place_without_a_table_are_refused() -> None:
    text = text_of("docs/requests.md")
    with pytest.raises(ValueError, match="places for"):
        with_tables(text, {**tables.REQUESTS, "more": lambda: ""})
    with pytest.raises(ValueError, match="places for"):
        with_tables(text, {"fields": tables.fields_table})


def test_a_figure_that_is_not_the_measured_one_is_noticed() -> None:
    text = text_of("docs/performance.md")
    figure = figures.times(figures.read("job")["stages"]["ours_to_stock_outside"])
    assert figure in text
    assert with_tables(text.replace(figure, "0.01 times"), figures.TABLES) == text


def test_the_schemas_hand_written_parts_stay_to_the_byte() -> None:
    text = text_of("schemas/request.schema.json")
    odd = text.replace('"title": "Wan worker request"', '"title":   "Wan"')
    assert catalog_files.request_schema(odd) == odd
    fields = json.loads(text)["properties"]
    assert fields["model"]["enum"] == ["auto", *MODELS]
    assert fields["solver"]["enum"] == list(SOLVERS)
