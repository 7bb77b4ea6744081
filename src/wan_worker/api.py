"""The door of the HTTP API.

    python -m wan_worker.api         or `make api`; with src on PYTHONPATH

Not covered: everything behind the door (server.app).
"""

import sys

from wan_worker.server.app import main

if __name__ == "__main__":
    sys.exit(main())
