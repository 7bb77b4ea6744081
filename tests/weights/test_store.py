"""The store: whole components or none, the same bytes every time."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from wan_worker.catalog.components import ENHANCER
from wan_worker.catalog.models import EXTRAS, MODELS, components_of
from wan_worker.errors import ModelCorrupt
from wan_worker.weights import store, tiny

REPOSITORY = Path(__file__).resolve().parents[2]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_tiny_weights_are_the_same_to_the_byte_every_time(
    every_model_dir: Path, tmp_path: Path
) -> None:
    tiny.write(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(every_model_dir)


def test_writing_tiny_weights_leaves_the_trained_ones_alone(tmp_path: Path) -> None:
    before = hashes(tiny.TRAINED)
    tiny.write(tmp_path)
    assert hashes(tiny.TRAINED) == before


def test_the_tiny_weights_of_all_models_fit_in_fifty_megabytes(every_model_dir: Path) -> None:
    assert sum(p.stat().st_size for p in every_model_dir.rglob("*") if p.is_file()) < 50_000_000


def test_models_share_one_text_encoder_and_all_but_the_5b_one_vae(every_model_dir: Path) -> None:
    folders = {path.name for path in every_model_dir.iterdir()} - {store.LORAS}
    assert folders == {c.name for c in (*components_of([*MODELS, *EXTRAS]), ENHANCER)}
    shared = set.intersection(*(set(model.component_names) for model in MODELS.values()))
    assert shared == {"umt5-xxl", "umt5-tokenizer"}
    others = [model for model in MODELS.values() if model.id != "wan2.2-ti2v-5b"]
    assert all("wan2.1-vae" in model.component_names for model in others)


def test_every_model_is_installed_and_marked_tiny(every_model_dir: Path) -> None:
    here = store.installed(every_model_dir)
    assert set(here) == set(MODELS)
    assert all(model.tiny for model in here.values())


def test_one_model_alone_leaves_the_other_missing(tmp_path: Path) -> None:
    tiny.write(tmp_path, ["wan2.1-t2v-1.3b"])
    assert set(store.installed(tmp_path)) == {"wan2.1-t2v-1.3b"}


def test_no_store_means_no_models(tmp_path: Path) -> None:
    assert store.installed(tmp_path / "absent") == {}


@pytest.mark.parametrize("damage", ["no manifest", "short file", "missing file", "not json"])
def test_a_component_that_is_not_whole_does_not_count(tmp_path: Path, damage: str) -> None:
    tiny.write(tmp_path, ["wan2.1-t2v-1.3b"])
    folder = tmp_path / "wan2.1-vae"
    file = folder / "diffusion_pytorch_model.safetensors"
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "short file":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing file":
        file.unlink()
    else:
        (folder / "manifest.json").write_text("[]")
    assert store.installed(tmp_path) == {}
    tiny.write(tmp_path, ["wan2.1-t2v-1.3b"])  # and writing again repairs it
    assert set(store.installed(tmp_path)) == {"wan2.1-t2v-1.3b"}


def test_one_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    tiny.write(tmp_path, ["wan2.1-t2v-1.3b"])
    file = tmp_path / "wan2.1-vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    vae = next(c for c in components_of(list(MODELS)) if c.name == "wan2.1-vae")
    with pytest.raises(ModelCorrupt, match=r"wan2\.1-vae/diffusion_pytorch_model\.safetensors"):
        store.verify(tmp_path, vae)


def test_an_interrupted_write_is_swept_by_the_next(tmp_path: Path) -> None:
    partial = tmp_path / "wan2.1-vae.partial"
    partial.mkdir(parents=True)
    (partial / "half.safetensors").write_bytes(b"half")
    tiny.write(tmp_path, ["wan2.1-t2v-1.3b"])
    assert not list(tmp_path.glob("*.partial"))
    manifest = json.loads((tmp_path / "wan2.1-vae" / "manifest.json").read_text())
    assert "half.safetensors" not in manifest["files"]


def test_a_manifest_says_where_each_file_is_from_and_what_it_is(models_dir: Path) -> None:
    manifest = json.loads((models_dir / "wan2.1-vae" / "manifest.json").read_text())
    assert manifest["component"] == "wan2.1-vae"
    assert manifest["repository"] == store.TINY
    assert manifest["revision"] is None
    assert manifest["dtype"] == "BF16"
    for name, facts in manifest["files"].items():
        data = (models_dir / "wan2.1-vae" / name).read_bytes()
        assert facts == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_component_is_taken_from_the_volume_where_the_image_lacks_it(tmp_path: Path) -> None:
    baked, volume = tmp_path / "baked", tmp_path / "volume"
    tiny.write(volume / store.VOLUME_STORE, ["wan2.1-t2v-1.3b"])
    assert store.installed(baked) == {}
    (baked / "wan2.1-vae").mkdir(parents=True)  # no manifest: as good as absent
    found = store.installed(baked, volume)["wan2.1-t2v-1.3b"]
    assert found.folders["wan2.1-vae"] == volume / "models" / "wan2.1-vae"
    lines = list(store.explain(baked, volume))
    assert "wan2.1-vae: in the network volume (tiny)" in lines
    assert "clip-vit-h: not installed" in lines


def test_an_index_may_only_name_safetensors_beside_it(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for bad in ("../x.safetensors", "/etc/x.safetensors", "x.bin", "a/x.safetensors"):
        index.write_text(json.dumps({"weight_map": {"w": bad}}))
        with pytest.raises(ValueError, match="no safetensors beside it"):
            store.weight_files(tmp_path)
    for bad in ("[]", "{}", '{"weight_map": 3}', "{"):
        index.write_text(bad)
        with pytest.raises(ValueError):
            store.weight_files(tmp_path)


def test_the_command_line_teaches(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "download_weights.py", *options],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    shown = run("--help").stdout
    assert "HF_TOKEN" in shown
    assert "--models wan2.1-t2v-1.3b" in shown
    nothing = run("--dest", str(tmp_path))
    assert nothing.returncode == 2
    assert "--tiny" in nothing.stderr
    assert run("--enhancer", "no-slash").returncode == 2
    unknown = run("--models", "wan9")
    assert unknown.returncode == 2
    assert "wan2.1-i2v-14b-480p" in unknown.stderr


def test_the_command_line_writes_lists_and_verifies(tmp_path: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "download_weights.py", "--dest", str(tmp_path), *options],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "wan2.1-t2v-1.3b: missing" in run("--list").stdout
    written = run("--tiny", "--models", "wan2.1-t2v-1.3b")
    assert (written.returncode, written.stderr) == (0, "")
    assert "wan2.1-t2v-1.3b: tiny" in run("--list").stdout
    assert "Qwen/Qwen2.5-7B-Instruct (enhancer): missing" in run("--list").stdout
    assert "(enhancer): tiny" in run("--tiny", "--enhancer").stdout
    assert run("--verify", "--enhancer").stdout.startswith("qwen2.5-7b-instruct: whole")
    assert run("--verify", "--models", "wan2.1-t2v-1.3b").returncode == 0
    failed = run("--verify", "--models", "wan2.1-i2v-14b-480p")
    assert failed.returncode == 1
    assert "MODEL_CORRUPT" in failed.stderr
