"""Promises of hardware: what nvidia-smi says is read right, and anything else means the CPU."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from wan_worker.machine import hardware
from wan_worker.machine.hardware import Hardware, detect, parse, refresh

PYTHON = sys.executable
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.mark.parametrize(
    ("answer", "name", "mib", "capability"),
    [
        pytest.param(
            "NVIDIA H200, 143771, 143771, 9.0\n", "NVIDIA H200", 143771, (9, 0), id="h200"
        ),
        pytest.param(
            "NVIDIA GeForce RTX 4090, 24564, 24564, 8.9",
            "NVIDIA GeForce RTX 4090",
            24564,
            (8, 9),
            id="ada",
        ),
        pytest.param(
            "NVIDIA RTX PRO 6000, Server, 97887, 97887, 12.0",
            "NVIDIA RTX PRO 6000, Server",
            97887,
            (12, 0),
            id="comma-in-the-name",
        ),
        pytest.param(
            "\n  A100 ,  81920 , 81920, 8.0 \r\n", "A100", 81920, (8, 0), id="stray-blanks"
        ),
    ],
)
def test_a_gpu_is_read_from_the_querys_answer(
    answer: str, name: str, mib: int, capability: tuple[int, int]
) -> None:
    machine = parse(answer)
    assert machine == Hardware(
        "cuda",
        name,
        mib * 1024**2,
        capability,
        f"nvidia-smi lists {name}",
        ram_bytes=machine.ram_bytes,
    )
    assert machine.ram_bytes > 64 * 1024**2


def test_what_others_hold_of_the_gpu_is_not_free() -> None:
    machine = parse("NVIDIA L4, 23034, 13034, 8.9")
    assert machine.memory_bytes == 23034 * 1024**2
    assert machine.taken_bytes == 10_000 * 1024**2
    assert machine.free_bytes == 13034 * 1024**2


def test_what_others_hold_is_asked_again_before_each_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    at_start = parse("NVIDIA L4, 23034, 23034, 8.9")
    answer = (PYTHON, "-c", "print('NVIDIA L4, 23034, 20034, 8.9')")
    monkeypatch.setattr(hardware, "QUERY", answer)
    assert refresh(at_start).taken_bytes == 3000 * 1024**2
    monkeypatch.setattr(hardware, "QUERY", ("nvidia-smi-is-not-here",))
    assert refresh(at_start) == at_start


def test_a_cpu_has_nothing_to_ask_again() -> None:
    machine = parse("")
    assert refresh(machine) is machine


class Cuda:
    """torch.cuda of a card of 100, of which this process has reserved 30 and others hold 20."""

    gib = 1024**3

    def is_initialized(self) -> bool:
        return True

    def mem_get_info(self) -> tuple[int, int]:
        return 50 * self.gib - hardware.CONTEXT_BYTES, 100 * self.gib

    def memory_reserved(self) -> int:
        return 30 * self.gib


def test_what_this_worker_has_loaded_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=Cuda()))  # type: ignore[arg-type]
    machine = refresh(Hardware("cuda", "x", 100 * Cuda.gib, (9, 0), "for a test"))
    assert machine.taken_bytes == 20 * Cuda.gib


def test_a_containers_limit_is_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, unlimited = tmp_path / "memory.max", tmp_path / "max"
    limit.write_text("1073741824\n")
    unlimited.write_text("max\n")
    monkeypatch.setattr(hardware, "CGROUP_LIMITS", (unlimited, limit, tmp_path / "absent"))
    assert parse("").memory_bytes == 1024**3
    monkeypatch.setattr(hardware, "CGROUP_LIMITS", (unlimited,))
    assert parse("").memory_bytes > 1024**3


def test_the_first_of_several_gpus_is_used() -> None:
    assert parse("First, 1000, 1000, 9.0\nSecond, 2000, 2000, 8.0").name == "First"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param("", "lists no GPU", id="empty"),
        pytest.param(" \n", "lists no GPU", id="blank"),
        pytest.param("No devices were found", "could not be read", id="prose"),
        pytest.param("NVIDIA GB10, [N/A], [N/A], 12.1", "could not be read", id="memory-not-known"),
        pytest.param("K80, 11441, 11441, [N/A]", "could not be read", id="capability-not-known"),
        pytest.param("NVIDIA H200, 143771, 9.0", "could not be read", id="column-missing"),
        pytest.param("H200, 143771 MiB, 143771 MiB, 9.0", "could not be read", id="with-units"),
    ],
)
def test_an_answer_without_a_gpu_means_the_cpu_and_says_why(answer: str, reason: str) -> None:
    machine = parse(answer)
    assert machine.device == "cpu"
    assert machine.compute_capability is None
    assert reason in machine.reason
    assert machine.memory_bytes > 64 * 1024**2
    assert "cores" in machine.name


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        pytest.param(("nvidia-smi-is-not-here",), "absent", id="no-driver"),
        pytest.param((PYTHON, "-c", "exit(9)"), "CalledProcessError", id="driver-fails"),
        pytest.param((PYTHON, "-c", "pass"), "lists no GPU", id="says-nothing"),
    ],
)
def test_a_machine_whose_driver_does_not_answer_is_a_cpu(
    query: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "QUERY", query)
    machine = detect()
    assert machine.device == "cpu"
    assert reason in machine.reason


def test_a_driver_that_answers_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "QUERY", (PYTHON, "-c", "print('NVIDIA L4, 23034, 23034, 8.9')"))
    machine = detect()
    assert (machine.device, machine.name, machine.compute_capability) == (
        "cuda",
        "NVIDIA L4",
        (8, 9),
    )


def test_looking_at_the_machine_does_not_import_torch() -> None:
    # In a process of its own, as another test may have imported torch in this one.
    code = (
        "import sys; from wan_worker.machine.hardware import detect; detect(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run((PYTHON, "-c", code), env={"PYTHONPATH": str(SOURCE)}, check=True)
