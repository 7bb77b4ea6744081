"""The tables say what the schemas, the code and the benchmarks' results say."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_drifted_table_is_noticed(tables: ModuleType) -> None:
    text, kinds = tables.REQUESTS.read_text("utf-8"), tables.TABLES[tables.REQUESTS]
    assert tables.render(text, kinds) == text
    assert tables.render(text.replace("| `video_high` |", "| `video_hihg` |"), kinds) == text


def test_every_document_and_plot_holds_what_the_code_says_and_what_was_measured(
    tables: ModuleType,
) -> None:
    for path, text in tables.wanted().items():
        assert path.read_text("utf-8") == text, path


def test_a_figure_that_is_not_the_measured_one_is_noticed(tables: ModuleType) -> None:
    text = tables.PERFORMANCE.read_text("utf-8")
    figure = tables.figures.times(tables.figures.read("job")["stages"]["ours_to_stock_outside"])
    assert figure in text
    assert tables.render(text.replace(figure, "0.01 times"), tables.figures.TABLES) == text


def test_every_error_code_has_a_meaning_and_no_meaning_is_left_over(tables: ModuleType) -> None:
    codes = {kind.code for kind in tables.leaves(tables.errors.WorkerError)}
    assert codes == set(tables.MEANINGS)


def test_every_variable_that_is_read_is_documented() -> None:
    source = (ROOT / "src" / "wan_worker" / "settings.py").read_text()
    names = set(re.findall(r'"((?:[A-Z]+_)+[A-Z]+)"', source)) - {"RUNPOD_WEBHOOK_GET_JOB"}
    settings = (ROOT / "docs" / "operating.md").read_text("utf-8")
    assert {name for name in names if f"`{name}`" not in settings} == set()


def test_every_feature_names_a_test_that_there_is() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    named = re.findall(r'\]\((tests/\S+\.py) "(\w+)"\)', readme)
    assert len(named) > 20
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), (path, name)


def test_nothing_points_outside_the_repository() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py")]:
        text = path.read_text("utf-8")
        assert "../shared" not in text
        assert "HOSTILE" not in text


def test_every_path_in_the_architecture_is_there_and_every_room_is_in_it() -> None:
    package = ROOT / "src" / "wan_worker"
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(
        re.findall(r"`((?:[\w.*-]+/)*[\w.*-]+\.(?:py|md|json|toml|hcl)|(?:[\w.-]+/)+)`", text)
    )
    assert len(named) > 80
    assert {path for path in named if not [*package.glob(path), *ROOT.glob(path)]} == set()
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    trunk = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert rooms - {path.split("/")[0] for path in named} == set()
    assert trunk - named == set()


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)\s]+)", path.read_text("utf-8")):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            document = path if not name else path.parent / name
            assert document.exists(), (path.name, target)
            if anchor:
                headings = re.findall(r"^#+ (.*)$", document.read_text("utf-8"), re.M)
                slugs = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
                assert anchor in slugs, (path.name, target)
