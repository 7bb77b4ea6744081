"""A server is measured over HTTP: what won is taken, said, and undone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import QUICK
from tests.integration.http_api import HttpApi

OPTIMIZE = "/api/v1/performance/optimize"
RECOMMENDED = "/api/v1/performance/recommendations"
MODEL = "wan2.1-t2v-1.3b"


@pytest.fixture(scope="module")
def api(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpApi]:
    with HttpApi(tmp_path_factory.mktemp("tuning"), models_dir) as server:
        server.wait_ready()
        yield server


def ended(api: HttpApi) -> dict[str, Any]:
    def look() -> Any:
        latest = api.get(OPTIMIZE).json["latest"]
        return latest if latest["status"] != "running" else None

    found: dict[str, Any] = api.until(look, 180.0)
    return found


def recommended(api: HttpApi) -> list[str]:
    return [each["id"] for each in api.get(RECOMMENDED).json["recommendations"]]


def test_a_model_is_measured_between_jobs_and_it_can_be_undone(api: HttpApi) -> None:
    (does,) = [
        each["request"]
        for each in api.get(RECOMMENDED).json["recommendations"]
        if each["id"] == f"measure:{MODEL}"
    ]
    order = api.call(does["method"], does["path"], does["body"])
    assert (order.status, order.json["latest"]["model"]) == (202, MODEL)
    again = api.call("POST", OPTIMIZE, {})
    assert (again.status, again.error["code"]) == (409, "CONFLICT")
    job = api.wait(api.submit(QUICK))
    assert job["status"] == "completed"
    api.until(lambda: api.get(OPTIMIZE).json["latest"]["done"] > 0)
    order_ended = ended(api)
    assert order_ended["status"] == "completed", order_ended
    (found,) = api.get(OPTIMIZE).json["calibrations"]
    assert found == order_ended["calibration"]
    assert found["trials"][0]["way"] == "as usual"
    assert all(trial["seconds"] > 0 for trial in found["trials"])
    assert f"measure:{MODEL}" not in recommended(api)
    reasons = api.wait(api.submit(QUICK))["result"]["metadata"]["plan"]["reasons"]
    threads = found["tuned"]["threads"]
    said = f"threads: {threads}, the fastest when this machine was measured"
    assert (said in reasons) == (threads is not None)
    undone = api.call("DELETE", OPTIMIZE)
    assert (undone.status, undone.json["calibrations"]) == (200, [])
    assert f"measure:{MODEL}" in recommended(api)
    reasons = api.wait(api.submit(QUICK))["result"]["metadata"]["plan"]["reasons"]
    assert not [reason for reason in reasons if reason.startswith("threads:")]
    none = api.call("DELETE", OPTIMIZE)
    assert (none.status, none.error["code"]) == (409, "CONFLICT")


def test_of_orders_that_come_together_one_is_taken(api: HttpApi) -> None:
    with ThreadPoolExecutor(6) as threads:
        orders = list(threads.map(lambda _: api.call("POST", OPTIMIZE, {"model": MODEL}), range(6)))
    assert sorted(order.status for order in orders) == [202, 409, 409, 409, 409, 409]
    assert api.call("DELETE", OPTIMIZE).status == 200
    assert ended(api)["status"] == "canceled"


def test_measuring_can_be_stopped_and_leaves_nothing(api: HttpApi) -> None:
    order = api.call("POST", OPTIMIZE)  # no body: the model is the server's choice
    assert order.status == 202, order.body
    assert api.call("DELETE", OPTIMIZE).status == 200
    order = ended(api)
    assert (order["status"], order["error"]["code"]) == ("canceled", "CANCELED")
    assert api.get(OPTIMIZE).json["calibrations"] == []


def test_measuring_ends_with_the_engine_and_says_so(api: HttpApi) -> None:
    assert api.call("POST", OPTIMIZE, {"model": "t2v-1.3B"}).status == 202
    api.engine().kill()
    order = ended(api)
    assert (order["status"], order["error"]["retryable"]) == ("failed", True)
    api.wait_ready()
    assert api.wait(api.submit(QUICK))["status"] == "completed"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("no-such-model", 404, "NOT_FOUND"),
        ("wan2.2-t2v-a14b", 409, "MODEL_UNAVAILABLE"),
    ],
)
def test_a_model_that_can_not_be_measured_is_refused(
    api: HttpApi, model: str, status: int, code: str
) -> None:
    refused = api.call("POST", OPTIMIZE, {"model": model})
    assert (refused.status, refused.error["code"]) == (status, code)
