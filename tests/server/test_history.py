"""What a job's result says, for as long as it is in the history."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from wan_worker.queue.ledger import FILE, Ledger
from wan_worker.server import app
from wan_worker.server.routes_generation import BASE, shown
from wan_worker.settings import Bucket, Secret, Settings

RECORDED = "https://s3.example.com/b/k?X-Amz-Expires=100"
OURS = f"{BASE}/a/assets/0"
BUCKET = Bucket("https://s3.example.com", Secret("k"), Secret("s"), "b")
PUBLIC = replace(BUCKET, public_url="https://cdn.example.com")


@pytest.mark.parametrize(
    ("bucket", "age", "url"),
    [
        (BUCKET, 50, RECORDED),
        (BUCKET, 150, OURS),
        (PUBLIC, 150, RECORDED),  # nothing is signed
        (None, 150, RECORDED),  # nobody here can sign it
    ],
    ids=["fresh", "expired", "public", "no-bucket"],
)
def test_a_file_in_a_bucket_can_be_fetched_however_old_its_signature(
    tmp_path: Path, bucket: Bucket | None, age: int, url: str
) -> None:
    settings = Settings(state_dir=tmp_path, bucket=bucket, url_expiry_seconds=100)
    with Ledger(tmp_path / FILE, lambda: time.time() - age) as ledger:
        ledger.submit("a", {}, 1)
        ledger.complete("a", {"assets": [{"url": RECORDED, "key": "k", "bytes": 1}]})
    parts = app.make_parts(settings)
    entry = parts.ledger.find("a")
    assert entry is not None
    told = shown(entry, parts)["result"]["assets"]
    parts.ledger.close()
    assert told == [{"url": url, "key": "k", "bytes": 1}]
