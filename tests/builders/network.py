"""A network of the tests' own: names, addresses, and what may not be dialled."""

import socket
from collections.abc import Callable

import pytest

from wan_worker.inputs.dialing import Policy

PUBLIC = "93.184.215.14"


def no_dial(ip: str, port: int, seconds: float) -> socket.socket:
    pytest.fail(f"dialled {ip}:{port}")


def no_resolve(host: str) -> tuple[str, ...]:
    pytest.fail(f"asked the resolver for {host}")


def no_sleep(seconds: float) -> None:
    assert 0 < seconds < 5


GUARDED = Policy(resolve=no_resolve, dial=no_dial, proxies=dict, sleep=no_sleep)
"""For what must be refused before anything leaves the machine."""


def names(**hosts: str) -> Callable[[str], tuple[str, ...]]:
    """A resolver of names with '_' for '.', and answers separated by spaces."""

    def resolve(host: str) -> tuple[str, ...]:
        if (answers := hosts.get(host.replace(".", "_"))) is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return tuple(answers.split())

    return resolve
