"""Promises of progress: stops name the stage, times add up, updates arrive in order or never."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.builders.clocks import Clock
from wan_worker.errors import Canceled, DeadlineExceeded
from wan_worker.timing.progress import Control, Event, Part, Relay


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- Control ---


def test_a_job_begins_in_the_queue() -> None:
    control = Control()
    assert control.stage == "queue"
    assert control.latest == Event(0, "queue")


@pytest.mark.parametrize("late", [10.0, 10.5, 1e9])
def test_a_deadline_names_the_stage_it_fell_in(clock: Clock, late: float) -> None:
    control = Control(10, clock=clock)
    control.enter("denoise")
    clock.now += 9.99
    control.check()
    clock.now = 1000.0 + late
    with pytest.raises(DeadlineExceeded, match="during denoise") as stop:
        control.check()
    assert "JOB_TIMEOUT_SECONDS" in stop.value.message


def test_a_stage_that_begins_too_late_is_not_entered(clock: Clock) -> None:
    reports: list[int] = []
    control = Control(10, notify=lambda: reports.append(1), clock=clock)
    control.enter("load")
    clock.now += 11
    with pytest.raises(DeadlineExceeded, match="during load"):
        control.enter("denoise")
    assert control.stage == "load"
    assert len(reports) == 1


def test_a_step_past_the_deadline_stops_the_job(clock: Clock) -> None:
    control = Control(10, clock=clock)
    control.enter("denoise")
    clock.now += 11
    with pytest.raises(DeadlineExceeded):
        control.step(1, 50)
    assert control.latest.step is None


def test_a_job_without_a_deadline_has_all_the_time_there_is(clock: Clock) -> None:
    control = Control(clock=clock)
    clock.now += 1e9
    control.check()
    assert control.seconds_left is None


def test_the_time_left_of_the_job_counts_down(clock: Clock) -> None:
    control = Control(10, clock=clock)
    clock.now += 4
    assert control.seconds_left == 6


def test_the_clock_is_monotonic_so_that_setting_the_time_ends_no_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    control = Control(60)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    control.check()
    assert control.seconds_left is not None
    assert 0 < control.seconds_left <= 60


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancelled_job_stops_at_its_next_check_naming_the_stage(times: int) -> None:
    control = Control()
    control.enter("denoise")
    for _ in range(times):
        control.cancel()
    for stop in (control.check, lambda: control.step(1, 2), lambda: control.enter("upload")):
        with pytest.raises(Canceled, match="during denoise"):
            stop()


def test_a_cancel_from_another_thread_is_seen() -> None:
    control = Control()
    thread = threading.Thread(target=control.cancel)
    thread.start()
    thread.join()
    with pytest.raises(Canceled):
        control.check()


def test_a_cancelled_job_that_is_also_late_says_cancelled(clock: Clock) -> None:
    control = Control(1, clock=clock)
    clock.now += 2
    control.cancel()
    with pytest.raises(Canceled):
        control.check()


def test_timings_add_up_to_the_time_that_passed(clock: Clock) -> None:
    control = Control(clock=clock)
    for stage, seconds in (("queue", 1), ("load", 2), ("denoise", 30), ("load", 4), ("upload", 8)):
        if stage != "queue":
            control.enter(stage)
        clock.now += seconds
    control.close_stage()
    assert control.timings == {"queue": 1, "load": 6, "denoise": 30, "upload": 8}
    assert sum(control.timings.values()) == clock.now - control.started


def test_closing_a_stage_twice_counts_its_time_once(clock: Clock) -> None:
    control = Control(clock=clock)
    control.enter("load")
    clock.now += 5
    control.close_stage()
    control.close_stage()
    assert control.timings["load"] == 5


@pytest.mark.parametrize(
    ("done", "passed", "left"), [(1, 2.0, 18.0), (5, 10.0, 10.0), (10, 20.0, 0.0), (4, 2.0, 3.0)]
)
def test_a_steps_time_left_is_the_average_pace_of_the_stage(
    clock: Clock, done: int, passed: float, left: float
) -> None:
    control = Control(clock=clock)
    clock.now += 100  # what came before the stage does not count
    control.enter("denoise")
    clock.now += passed
    control.step(done, 10)
    assert control.latest == Event(2, "denoise", done, 10, left)


def test_reports_are_numbered_and_each_one_is_told() -> None:
    numbers: list[int] = []
    control = Control(notify=lambda: numbers.append(control.latest.number))
    control.enter("load")
    control.enter("denoise")
    control.step(1, 2)
    control.step(2, 2)
    control.enter("upload")
    assert numbers == [1, 2, 3, 4, 5]
    assert control.latest.step is None


def test_an_events_public_form_holds_only_what_is_known() -> None:
    assert Event(1, "load").public() == {"stage": "load", "number": 1}
    assert Event(4, "denoise", 3, 10, 12.345).public() == {
        "stage": "denoise",
        "number": 4,
        "step": 3,
        "steps": 10,
        "message": "denoise: step 3 of 10",
        "seconds_left": 12.3,
    }


def test_a_report_says_which_of_several_outputs_it_is_about() -> None:
    control = Control()
    control.parts = (Part("output", 2, 2, 4),)
    control.enter("denoise")
    assert control.latest.public()["message"] == "denoise, output 2 of 4"
    control.step(3, 10)
    public = control.latest.public()
    assert (public["output"], public["outputs"], public["step"]) == (2, 4, 3)
    assert public["message"] == "denoise, output 2 of 4: step 3 of 10"
    control.parts = (Part("output", 1, 4, 4),)
    control.step(4, 10)
    assert control.latest.public()["message"] == "denoise, outputs 1 to 4 of 4: step 4 of 10"


def test_a_late_job_can_be_granted_the_time_to_save_its_work(clock: Clock) -> None:
    control = Control(10, clock=clock)
    clock.now += 11
    with pytest.raises(DeadlineExceeded):
        control.check()
    control.extend(5)
    control.check()
    clock.now += 6
    with pytest.raises(DeadlineExceeded):
        control.check()


def test_an_extension_takes_no_time_away(clock: Clock) -> None:
    control = Control(100, clock=clock)
    control.extend(5)
    assert control.seconds_left == 100
    unlimited = Control(clock=clock)
    unlimited.extend(5)
    assert unlimited.seconds_left is None


# --- Relay ---

Update = dict[str, Any]


class Platform:
    """Takes updates, as slowly as told, and remembers when."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun: list[int] = []
        self.arrived: list[int] = []
        self.times: list[float] = []
        self.stopped = False

    async def send(self, update: Update) -> None:
        assert not self.stopped, "an update was sent after close had returned"
        self.begun.append(update["number"])
        self.times.append(time.monotonic())
        await asyncio.sleep(self.seconds)
        self.arrived.append(update["number"])


def relaying(
    platform: Platform,
    story: Callable[[Control, Callable[[], Awaitable[None]]], Awaitable[None]],
    interval: float = 0.0,
    close_seconds: float = 5.0,
) -> Control:
    """Run a relay while ``story`` happens; the story closes it, or it is closed afterwards."""

    async def main() -> Control:
        relay = Relay(asyncio.get_running_loop(), platform.send, interval)
        control = Control(notify=relay.notify)
        task = asyncio.create_task(relay.run(control))

        async def close() -> None:
            await relay.close(task, close_seconds)
            platform.stopped = True
            assert task.done()

        await story(control, close)
        if not platform.stopped:
            await close()
        return control

    return asyncio.run(asyncio.wait_for(main(), 20))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_updates_arrive_in_order() -> None:
    platform = Platform(seconds=0.002)

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        def work() -> None:
            for step in range(50):
                control.step(step + 1, 50)
                time.sleep(0.001)

        await asyncio.to_thread(work)
        await until(lambda: bool(platform.arrived) and platform.arrived[-1] == 50)

    relaying(platform, story)
    assert len(platform.arrived) > 2
    assert platform.arrived == sorted(set(platform.arrived))


def test_a_slow_platform_gets_the_newest_event_and_no_queue_of_old_ones() -> None:
    platform = Platform(seconds=0.05)

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("denoise")
        await until(lambda: platform.begun == [1])
        for step in range(100):
            control.step(step + 1, 100)
        await until(lambda: len(platform.arrived) == 2)

    relaying(platform, story)
    assert platform.arrived == [1, 101]


def test_updates_are_throttled() -> None:
    platform = Platform()

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.timeout(10):
            while len(platform.times) < 4:
                control.step(1, 2)
                await asyncio.sleep(0.001)

    relaying(platform, story, interval=0.05)
    gaps = [
        after - before for before, after in zip(platform.times, platform.times[1:], strict=False)
    ]
    assert min(gaps) > 0.04


def test_nothing_is_sent_when_nothing_has_changed() -> None:
    platform = Platform()

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("load")
        await until(lambda: platform.arrived == [1])
        await asyncio.sleep(0.05)

    relaying(platform, story)
    assert platform.begun == [1]


def test_close_waits_for_an_update_that_is_under_way() -> None:
    platform = Platform(seconds=0.2)

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("upload")
        await until(lambda: platform.begun == [1])
        assert platform.arrived == []
        await close()
        assert platform.arrived == [1]

    relaying(platform, story)


def test_nothing_is_sent_after_close_has_returned() -> None:
    platform = Platform(seconds=0.05)

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("upload")
        await until(lambda: platform.begun == [1])
        control.enter("late")  # waits behind the one under way
        await close()
        control.enter("later")
        await asyncio.sleep(0.1)

    relaying(platform, story)
    assert platform.begun == platform.arrived == [1]


def test_close_does_not_wait_for_an_update_that_hangs() -> None:
    platform = Platform(seconds=60)
    began = time.monotonic()

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("upload")
        await until(lambda: platform.begun == [1])
        await close()

    relaying(platform, story, close_seconds=0.05)
    assert time.monotonic() - began < 5
    assert platform.arrived == []


def test_close_right_after_a_report_neither_hangs_nor_fails() -> None:
    platform = Platform()

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("upload")
        await close()

    relaying(platform, story)
    assert platform.begun == platform.arrived


def test_a_relay_that_never_had_anything_to_say_closes() -> None:
    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        await close()

    platform = Platform()
    relaying(platform, story)
    assert platform.begun == []


def test_an_update_that_fails_costs_neither_the_job_nor_the_next_update(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Platform):
        async def send(self, update: Update) -> None:
            await super().send(update)
            if update["number"] == 1:
                raise TimeoutError("https://example.com/?token=canary-91")

    platform = Failing()

    async def story(control: Control, close: Callable[[], Awaitable[None]]) -> None:
        control.enter("load")
        await until(lambda: platform.arrived == [1])
        control.enter("denoise")
        await until(lambda: platform.arrived == [1, 2])
        await close()

    relaying(platform, story)
    assert platform.arrived == [1, 2]
    assert "canary" not in caplog.text
