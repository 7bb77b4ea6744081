"""The prompt-embedding cache: what it keeps, what it lets go, and that no job can tell."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.answers import sha256_of
from tests.builders.pipelines import build, make_plan
from tests.builders.requests import T2V
from tests.conftest import QUICK, Answer, error_of
from wan_worker import job as jobs
from wan_worker.pipelines import generate, lora, pool
from wan_worker.prompts.embeddings import Embeddings, Key
from wan_worker.request.loras import Lora
from wan_worker.timing.progress import Control
from wan_worker.weights.lora_files import LoraFile

Serve = Callable[..., Answer]

CYAN = LoraFile(Lora("cyan"), Path("weights/tiny-loras/cyan.safetensors"))
KEY = Key("a cat", "umt5-xxl", "torch.float32")


def embedding(tokens: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    """[1, 512, width]: that many tokens, then zeros."""
    made = torch.zeros(1, 512, width)
    made[0, :tokens] = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.fixture
def fresh(worker: jobs.Worker) -> jobs.Worker:
    """The worker with a pool of its own, which has encoded nothing yet."""
    return replace(worker, pool=pool.Pool(worker.hardware))


@pytest.fixture
def encoded(fresh: jobs.Worker) -> Iterator[list[str]]:
    """What the text encoder is run for from here on: the number of tokens of each text."""
    encoder = build(fresh, make_plan(fresh)).text_encoder
    runs: list[str] = []
    hook = encoder.register_forward_pre_hook(lambda _, args: runs.append(str(args[0].tolist())))
    yield runs
    hook.remove()


def run(worker: jobs.Worker, **changes: Any) -> Answer:
    answer = jobs.run({"id": "e", "input": QUICK | changes}, worker, Control())
    assert "error" not in answer
    return answer


@pytest.mark.parametrize("tokens", [0, 1, 77, 512])
def test_an_embedding_comes_back_as_it_was_put(tokens: int) -> None:
    kept, made = Embeddings(), embedding(tokens)
    kept.put(KEY, made)
    again = kept.get(KEY)
    assert again is not None
    assert torch.equal(again, made)
    assert kept.nbytes == tokens * 8 * 4  # what follows the tokens is not stored


def test_what_a_job_does_to_an_embedding_does_not_reach_the_next_one() -> None:
    kept, made = Embeddings(), embedding(3)
    kept.put(KEY, made)
    expected = made.clone()
    made.zero_()
    for _ in range(2):
        again = kept.get(KEY)
        assert again is not None
        assert torch.equal(again, expected)
        again.zero_()


@pytest.mark.parametrize(
    "other",
    [
        KEY._replace(text="a dog"),
        KEY._replace(encoder="another"),
        KEY._replace(dtype="torch.bfloat16"),
    ],
)
def test_another_text_encoder_or_type_is_another_embedding(other: Key) -> None:
    kept = Embeddings()
    kept.put(KEY, embedding(3))
    assert kept.get(other) is None


def test_the_least_recently_used_make_way_within_the_bound() -> None:
    kept = Embeddings(max_bytes=3 * 10 * 8 * 4)
    texts = [KEY._replace(text=name) for name in "abcd"]
    for text in texts[:3]:
        kept.put(text, embedding(10))
    assert kept.get(texts[0]) is not None
    kept.put(texts[3], embedding(10))
    assert [kept.get(text) is not None for text in texts] == [True, False, True, True]
    assert kept.nbytes == 3 * 10 * 8 * 4


def test_a_text_that_is_put_again_counts_once() -> None:
    kept = Embeddings()
    kept.put(KEY, embedding(10))
    kept.put(KEY, embedding(4, seed=1))
    assert (len(kept), kept.nbytes) == (1, 4 * 8 * 4)
    assert torch.equal(kept.get(KEY), embedding(4, seed=1))  # type: ignore[arg-type]


def test_what_is_larger_than_the_bound_is_not_kept() -> None:
    kept = Embeddings(max_bytes=100)
    kept.put(KEY, embedding(10))
    assert (kept.get(KEY), kept.nbytes) == (None, 0)


def test_a_text_that_was_encoded_before_is_not_encoded_again(
    fresh: jobs.Worker, encoded: list[str]
) -> None:
    first = run(fresh)
    assert len(encoded) == 2  # the prompt and the negative prompt
    again = run(fresh)
    assert len(encoded) == 2
    assert sha256_of(again) == sha256_of(first)
    run(fresh, prompt="a blue square")
    assert len(encoded) == 3  # the negative prompt was known
    assert len(set(encoded)) == 3


def test_a_prompt_that_is_its_own_negative_is_encoded_once(
    fresh: jobs.Worker, encoded: list[str]
) -> None:
    run(fresh, negative_prompt=QUICK["prompt"])
    assert len(encoded) == 1


def test_the_file_is_the_same_with_and_without_what_was_kept(fresh: jobs.Worker) -> None:
    several = {"prompt": ["a red circle", "a blue square"], "negative_prompt": "noise"}
    without = [run(replace(fresh, pool=pool.Pool(fresh.hardware)), **several)]
    run(fresh, prompt="a blue square")
    kept = [run(fresh, **several), run(fresh, **several)]
    assert [a["sha256"] for a in kept[0]["assets"]] == [a["sha256"] for a in without[0]["assets"]]
    assert [a["sha256"] for a in kept[1]["assets"]] == [a["sha256"] for a in without[0]["assets"]]


def test_a_rewritten_prompt_is_kept_under_its_own_words(fresh: jobs.Worker) -> None:
    plain = sha256_of(run(fresh, prompt="a blue square"))
    fresh = replace(fresh, pool=pool.Pool(fresh.hardware))
    rewritten = run(fresh, prompt="a blue square", enhance_prompt=True)
    assert rewritten["metadata"]["prompt"] != "a blue square"
    assert sha256_of(run(fresh, prompt="a blue square")) == plain != sha256_of(rewritten)


def test_a_lora_leaves_nothing_in_what_is_kept(fresh: jobs.Worker) -> None:
    planned = make_plan(fresh, **T2V)
    pipeline = build(fresh, planned)
    before, negative, _ = generate.encode_prompts(pipeline, planned, Embeddings())
    encoder = {name: weight.clone() for name, weight in pipeline.text_encoder.state_dict().items()}
    kept = Embeddings()
    with lora.applied(pipeline, (CYAN,)):
        worn = pipeline.text_encoder.state_dict()
        assert worn.keys() == encoder.keys()
        assert all(torch.equal(weight, encoder[name]) for name, weight in worn.items())
        generate.encode_prompts(pipeline, planned, kept)
    after, negative_after, _ = generate.encode_prompts(pipeline, planned, kept)
    assert torch.equal(after, before)
    assert torch.equal(negative_after, negative)


def test_a_fault_in_the_encoder_fails_its_job_and_not_the_next(fresh: jobs.Worker) -> None:
    before = sha256_of(run(replace(fresh, pool=pool.Pool(fresh.hardware))))
    encoder = build(fresh, make_plan(fresh)).text_encoder

    def break_down(_module: Any, _args: Any, output: Any) -> None:
        output.last_hidden_state.fill_(float("nan"))

    hook = encoder.register_forward_hook(break_down)
    answer = jobs.run({"id": "e", "input": QUICK}, fresh, Control())
    hook.remove()
    assert error_of(answer)["code"] == "GENERATION_FAILED"
    assert len(fresh.pool.embeddings) == 0
    assert sha256_of(run(fresh)) == before
