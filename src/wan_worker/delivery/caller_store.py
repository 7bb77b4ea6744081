"""May boto3 connect there? A store that a caller names is held to the rules of every other URL.

``net.check`` has looked at the endpoint before the work, but boto3 asks the resolver again when it
uploads, minutes later, and for some endpoints puts the bucket's name before the host. So ``guard``
gives its client connections of our own making:

- each goes to an address that net has checked, while TLS, Host and signature keep the name;
- no proxy of the environment is used;
- all waits end at one deadline, however slowly an answer drips, and answers have a largest size.

How: botocore lets a ``before-send`` handler answer in its place; ours is botocore's own session
with connection pools that dial through net, put in its place as urllib3's SOCKS support does it.
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
"""Over one connection. Stores answer an upload with headers and a few lines of XML."""
READ_SECONDS: Final = 60
"""For one read, so that a dead connection is given up and tried again before the deadline."""


def guard(client: Any, policy: Policy, *, field: str, seconds: float) -> None:
    """Have an S3 client of boto3 connect through net from now on.

    Args:
        field: the request's field that named the endpoint.
        seconds: for everything that the client will do.

    The client then raises UrlBlocked where its endpoint's name has come to mean a private address,
    and StorageFailed when the time is up.
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

    ends = policy.clock() + seconds

    def dial(connection: Any, scheme: str) -> socket.socket:
        url, left = f"{scheme}://{connection.host}:{connection.port}/", ends - policy.clock()
        try:
            return net.connect(url, policy, field=field, seconds=left)
        except FetchFailed as problem:  # no time is left, or the name is gone
            raise StorageFailed(f"The bucket could not be reached: {problem.message}") from None
        except OSError as problem:
            raise NewConnectionError(connection, type(problem).__name__) from None

    def left() -> float:
        rest = ends - policy.clock()
        if rest <= 0:
            raise TimeoutError("the store took too long")
        return min(rest, READ_SECONDS)

    class Plain(AWSHTTPConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self, "http")

        def connect(self) -> None:
            super().connect()
            self.sock = _Leash(self.sock, left)

    class Secure(AWSHTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self, "https")

        def connect(self) -> None:
            super().connect()
            self.sock = _Leash(self.sock, left)

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
            except HTTPClientError as problem:  # what botocore makes of what it does not know
                cause = problem.kwargs.get("error")
                if isinstance(cause, WorkerError):
                    raise cause from None
                raise

    session = Session()
    client.meta.events.register("before-send.s3", lambda request, **_: session.send(request))


class _Leash:
    """A socket on which every wait ends in time, and no more than so much comes in."""

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
        """As a socket's own, which would read past us; it too keeps the socket until it is read."""
        self._sock._io_refs += 1  # type: ignore[attr-defined]
        raw = socket.SocketIO(self, "r")  # type: ignore[arg-type]
        # Unbuffered for who looks at the first line only, and leaves the rest to another reader.
        return raw if buffering == 0 else BufferedReader(raw)
