"""Starts the HTTP API.

    python -m wan_worker.api         or `make api`; with src on PYTHONPATH

Not covered: the server itself (server.app).
"""

import sys

from wan_worker.server.app import main

if __name__ == "__main__":
    sys.exit(main())
