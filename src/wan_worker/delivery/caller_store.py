"""May boto3 connect there? A store that a caller names follows the rules of every other URL.

``net.check`` has checked the endpoint before the work. But boto3 asks the resolver again when it
uploads, minutes later. For some endpoints it also puts the bucket's name before the host. So
``guard`` gives the client our own connections:

- each goes to an address that inputs.net has checked; TLS, Host and signature use the name;
- no proxy of the environment is used;
- all waits end at one deadline, even if an answer arrives slowly; the size of answers is limited.

How: botocore lets a ``before-send`` handler send the request. Ours is botocore's own session with
connection pools that dial through inputs.net. They are installed as in urllib3's SOCKS support.
Not covered: the operator's own bucket, which the operator has chosen.
"""

import socket
from collections.abc import Callable
from io import BufferedReader
from typing import Any, Final

from wan_worker.errors import FetchFailed, StorageFailed, WorkerError
from wan_worker.inputs import net
from wan_worker.inputs.dialing import Policy

MAX_ANSWER_BYTES: Final = 4 * 1024**2
"""Per connection. Stores answer an upload with headers and a few lines of XML."""
READ_SECONDS: Final = 60
"""The limit for one read, so that a dead connection is retried before the deadline."""


def guard(client: Any, policy: Policy, *, field: str, seconds: float) -> None:
    """Make an S3 client of boto3 connect through inputs.net from now on.

    Args:
        field: the request's field that named the endpoint.
        seconds: the limit for everything that the client does.

    The client then raises UrlBlocked if its endpoint's name now resolves to a private address, and
    StorageFailed if the time is up.
    """
    from botocore.awsrequest import (
        AWSHTTPConnection,
        AWSHTTPConnectionPool,
        AWSHTTPSConnection,
        AWSHTTPSConnectionPool,
    )
    from botocore.exceptions import HTTPClientError
    from botocore.httpsession import URLLib3Session
    from urllib3.exceptions import NewConnectionError

    deadline = policy.clock() + seconds

    def dial(connection: Any, scheme: str) -> socket.socket:
        url, left = f"{scheme}://{connection.host}:{connection.port}/", deadline - policy.clock()
        try:
            return net.connect(url, policy, field=field, seconds=left)
        except FetchFailed as problem:  # no time is left, or the name is gone
            raise StorageFailed(f"The bucket could not be reached: {problem.message}") from None
        except OSError as problem:
            raise NewConnectionError(connection, type(problem).__name__) from None

    def left() -> float:
        rest = deadline - policy.clock()
        if rest <= 0:
            raise TimeoutError("the store took too long")
        return min(rest, READ_SECONDS)

    class Plain(AWSHTTPConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self, "http")

        def connect(self) -> None:
            super().connect()
            self.sock = _LimitedSocket(self.sock, left)

    class Secure(AWSHTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self, "https")

        def connect(self) -> None:
            super().connect()
            self.sock = _LimitedSocket(self.sock, left)

    class PlainPool(AWSHTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(AWSHTTPSConnectionPool):
        ConnectionCls = Secure

    class Session(URLLib3Session):
        def __init__(self) -> None:
            super().__init__(proxies={}, timeout=READ_SECONDS)
            pools = {"http": PlainPool, "https": SecurePool}
            self._manager.pool_classes_by_scheme = pools  # type: ignore[attr-defined]

        def send(self, request: Any) -> Any:
            try:
                return super().send(request)
            except HTTPClientError as problem:  # botocore wraps an error that it does not know
                cause = problem.kwargs.get("error")
                if isinstance(cause, WorkerError):
                    raise cause from None
                raise

    session = Session()
    client.meta.events.register("before-send.s3", lambda request, **_: session.send(request))


class _LimitedSocket:
    """A socket with a limit on every wait and on the bytes received."""

    def __init__(self, sock: socket.socket, left: Callable[[], float]) -> None:
        self._sock = sock
        self._left = left
        self._received = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def recv_into(self, buffer: Any) -> int:
        self._sock.settimeout(self._left())
        size = self._sock.recv_into(buffer)
        self._received += size
        if self._received > MAX_ANSWER_BYTES:
            raise OSError("the store answers without end")
        return size

    def makefile(self, _mode: str, buffering: int = -1) -> BufferedReader | socket.SocketIO:
        """Like a socket's own, which would skip our limits. It too keeps the socket open."""
        self._sock._io_refs += 1  # type: ignore[attr-defined]
        raw = socket.SocketIO(self, "r")  # type: ignore[arg-type]
        # Unbuffered for a reader of the first line only: another reader takes the rest.
        return raw if buffering == 0 else BufferedReader(raw)
