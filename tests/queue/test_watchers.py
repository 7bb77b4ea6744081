"""Watching a job: the latest of each kind, also for who comes late or reads slowly."""

import asyncio
from typing import Any

from wan_worker.queue.watchers import Message, Watchers


def step(number: int) -> Message:
    return {"type": "progress", "step": number}


PREVIEW = {"type": "preview", "data": "x"}
ENDED = {"type": "ended", "status": "completed"}


async def heard(watchers: Watchers, job_id: str = "a") -> list[Message]:
    return [message async for message in watchers.follow(job_id)]


def test_every_watcher_hears_what_is_new_until_the_job_has_ended() -> None:
    async def run() -> None:
        watchers = Watchers()
        both = asyncio.gather(heard(watchers), heard(watchers))
        for message in (step(1), PREVIEW, step(2), ENDED):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            watchers.publish("a", message)
        assert await both == [[step(1), PREVIEW, step(2), ENDED]] * 2

    asyncio.run(run())


def test_who_comes_late_gets_the_latest_of_each_kind_first() -> None:
    async def run() -> None:
        watchers = Watchers()
        for message in (step(1), PREVIEW, step(2)):
            watchers.publish("a", message)
        following = watchers.follow("a")
        first = [await anext(following), await anext(following)]
        assert sorted(first, key=str) == sorted([PREVIEW, step(2)], key=str)

    asyncio.run(run())


def test_a_slow_reader_misses_what_is_old_and_nothing_piles_up() -> None:
    async def run() -> None:
        watchers = Watchers()
        following = watchers.follow("a")
        watchers.publish("a", step(0))
        assert await anext(following) == step(0)
        for number in range(1, 1_000):
            watchers.publish("a", step(number))
        watchers.publish("a", ENDED)
        assert [message async for message in following] == [step(999), ENDED]

    asyncio.run(run())


def test_nothing_of_a_job_is_kept_when_it_has_ended() -> None:
    watchers = Watchers()
    watchers.publish("a", step(1))
    assert watchers.latest("a", "progress") == step(1)
    watchers.publish("a", ENDED)
    assert watchers.latest("a", "progress") is None
    assert vars(watchers)["_latest"] == {}


def test_the_first_and_the_last_watcher_are_noticed() -> None:
    async def run() -> None:
        watchers = Watchers()
        changes: list[Any] = []
        watchers.changed = lambda job_id, watched: changes.append((job_id, watched))
        tasks = [asyncio.create_task(heard(watchers)) for _ in range(2)]
        await asyncio.sleep(0)
        assert (changes, watchers.watched) == ([("a", True)], ("a",))
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        assert changes == [("a", True)]
        watchers.publish("a", ENDED)
        await tasks[1]
        assert (changes, watchers.watched) == ([("a", True), ("a", False)], ())

    asyncio.run(run())
