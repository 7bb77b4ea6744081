"""The line to the server carries messages and nothing else."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CHATTY = """
import os, sys
sys.path.insert(0, "src")
from wan_worker.queue.json_lines import take_stdout
line = take_stdout()
print("a library prints")
os.system("echo a program prints")
os.write(1, b"so does C\\n")
line.say("ready", name="é\\n")
"""


def test_what_libraries_print_is_no_message() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTY],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == '{"say": "ready", "name": "\\u00e9\\n"}\n'
    for said in ("a library prints", "a program prints", "so does C"):
        assert said in done.stderr


def test_a_server_that_is_gone_is_no_failure() -> None:
    code = CHATTY + 'for _ in range(20_000): line.say("x" * 100)\n'
    process = subprocess.Popen(
        [sys.executable, "-c", code + 'print("done")'], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert "done" in process.communicate(timeout=60)[1]
    assert process.returncode == 0
