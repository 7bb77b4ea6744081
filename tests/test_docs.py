"""The documents name tests and places that there are. What is generated: tests/docs."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


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
