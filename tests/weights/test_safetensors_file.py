"""Safetensors files: read whole or not at all, rounded as torch rounds, in bounded memory."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wan_worker.weights import safetensors_file

ROOT = Path(__file__).resolve().parents[2]


def saved(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = folder / "model.safetensors"
    parts = {
        "blocks.0.norm2.weight": torch.randn(7),
        "blocks.0.ffn.weight": torch.randn(33, 5) * 1e3,
        "odd": torch.randn(3),
        "edges": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.4e38, 1.00390625]),
        "half": torch.randn(5).to(torch.float16),
        "count": torch.arange(3),
        "empty": torch.empty(0),
    }
    save_file(parts, path, {"format": "pt"})
    return path


def test_what_is_rounded_is_rounded_as_torch_does_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file

    monkeypatch.setattr(safetensors_file, "PIECE_BYTES", 16)  # several pieces to a tensor
    source, target = saved(tmp_path), tmp_path / "bf16.safetensors"
    safetensors_file.to_bfloat16(source, target, frozenset({"norm2"}))
    before, after = load_file(source), load_file(target)
    assert before.keys() == after.keys()
    rounded = {"blocks.0.ffn.weight", "odd", "edges", "empty"}
    for name, tensor in before.items():
        expected = tensor.to(torch.bfloat16) if name in rounded else tensor
        assert after[name].dtype == expected.dtype, name
        assert torch.equal(after[name].nan_to_num(), expected.nan_to_num()), name
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for tensor in safetensors_file.read_header(target).tensors.values():
        width = {"F32": 4, "I64": 8}.get(tensor.dtype, 2)
        assert tensor.start % width == 0


def test_rounding_what_is_rounded_changes_nothing(tmp_path: Path) -> None:
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    safetensors_file.to_bfloat16(saved(tmp_path), once, frozenset({"norm2"}))
    safetensors_file.to_bfloat16(once, twice, frozenset({"norm2"}))
    assert once.read_bytes() == twice.read_bytes()


def test_a_module_is_kept_by_a_whole_part_of_its_name(tmp_path: Path) -> None:
    header = safetensors_file.read_header(saved(tmp_path))
    assert "blocks.0.norm2.weight" in safetensors_file.to_halve(header, frozenset({"norm"}))
    assert "blocks.0.norm2.weight" not in safetensors_file.to_halve(header, frozenset({"norm2"}))


@pytest.mark.parametrize("cut", [1, 100])
def test_a_file_that_is_cut_short_or_too_long_is_refused(tmp_path: Path, cut: int) -> None:
    data = saved(tmp_path).read_bytes()
    for bad in (data[:-cut], data + b"\0" * cut, data[:4], b""):
        path = tmp_path / "bad.safetensors"
        path.write_bytes(bad)
        with pytest.raises(ValueError):
            safetensors_file.read_header(path)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["__metadata__", "a", "dtype", "shape", "data_offsets"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_other_header_is_refused_or_read(tmp_path_factory: object, content: object) -> None:
    folder = Path(getattr(tmp_path_factory, "getbasetemp")())  # noqa: B009
    encoded = json.dumps(content).encode()
    path = folder / "odd.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"1234")
    with contextlib.suppress(ValueError):
        safetensors_file.read_header(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    # One tensor of 384 MB, which a conversion tensor by tensor would hold one and a half times.
    source = tmp_path / "large.safetensors"
    size = 384 * 1024**2
    header = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    encoded = json.dumps(header).encode()
    with source.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + size)  # zeros that take no disk
    code = """
import resource, sys
from pathlib import Path
import torch
from wan_worker.weights import safetensors_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
safetensors_file.to_bfloat16(Path(sys.argv[1]), Path(sys.argv[2]), frozenset())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    target = tmp_path / "rounded.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)],
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 300 * 1024**2
    assert safetensors_file.read_header(target).nbytes == size // 2
    target.unlink()
