"""The tiny language model: a Qwen2 of toy size that completes captions of the drawn world.

    PYTHONPATH=src python -m training.enhancer --weights weights/tiny

*a blue square* becomes *a blue square moving right on a white background*. For a still image it
leaves motion out. For a video that starts from an image it gives the motion alone. Training takes a
few minutes on one core, from seeds, without downloads. The label before the idea tells the model
the kind. It is trained on made-up instructions more than on the worker's own, so that those may
be reworded.
Not covered: any other world, language or chat.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from wan_worker.prompts import enhance

from . import data, text
from .__main__ import put
from .optimise import Progress

FOLDER = "qwen2.5-7b-instruct"
STEPS, BATCH, SEED, RATE = 1600, 32, 20261121, 4e-3
KINDS: tuple[enhance.Kind, ...] = ("video", "image", "image_to_video")
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# ChatML, as Qwen's models speak it.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 440
LONGEST = 30  # words of a made-up instruction


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen's byte-level BPE. A caption word is one token; any other word is a few tokens."""
    rng, (trained, _) = np.random.default_rng(SEED), data.split()
    captions = [data.any_caption(rng, pair) for pair in trained for _ in range(2)]
    pieces = [*captions, *("\n".join(m["content"] for m in enhance.messages(k, "")) for k in KINDS)]
    blank = Qwen2Tokenizer(vocab={}, merges=[]).backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core = Tokenizer(models.BPE())
    core.normalizer, core.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    core.train_from_iterator(pieces, trainer)
    learned = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=None,
        eos_token=MARKS[2],
        pad_token=MARKS[0],
        extra_special_tokens=[MARKS[1]],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_model(vocabulary: int) -> Qwen2ForCausalLM:
    """Two layers of width 32."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def completed(kind: enhance.Kind, idea: str) -> str:
    """The answer that the model should give: the idea's facts, and the rest by one rule.

    The rule: red circles that move right on white, or on black if the shape itself is white.
    """
    words = idea.lower().replace(",", " ").replace(".", " ").replace("grey", "gray").split()
    backdrop = None
    if "background" in words and words.index("background") > 0:
        before = words.pop(words.index("background") - 1)
        backdrop = before if before in data.BACKGROUNDS else None
    colour = next((w for w in words if w in data.SHAPE_COLOURS), None)
    shape = next((w for w in words if w in data.KINDS), None)
    motion = next(
        (w.removesuffix("wards") for w in words if w.removesuffix("wards") in data.MOTIONS), None
    )
    if not {"static", "rest", "not", "still"}.isdisjoint(words):
        motion = "still"
    verb = "standing still" if motion == "still" else f"moving {motion or 'right'}"
    if kind == "image_to_video":
        known = " ".join(filter(None, (colour, shape or ("shape" if colour else None))))
        return f"{data.article(known)} {verb}" if known else verb
    thing = (colour or "red", shape or "circle")
    ground = backdrop or ("black" if thing[0] == "white" else "white")
    return data.caption((*thing, motion or "right", ground), single=kind == "image")


def sample(
    rng: np.random.Generator, pairs: list[tuple[str, str, str, str]]
) -> tuple[enhance.Kind, str]:
    """A kind and an idea."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    combination = pairs[int(rng.integers(len(pairs)))]
    if rng.random() < 0.04:
        return kind, data.junk(rng, int(rng.integers(1, 8)))
    return kind, data.any_caption(rng, combination, single=kind == "image" and rng.random() < 0.7)


def instructions(rng: np.random.Generator) -> list[str]:
    """One for each kind, for a batch: the worker's own in one batch of ten, else other words."""
    if rng.random() < 0.1:
        return [enhance.instruction(kind) for kind in KINDS]
    others = "".join(enhance.instruction(kind) for kind in KINDS).split() + list(text.WORDS)
    return [" ".join(rng.choice(others, int(rng.integers(1, LONGEST)))) for _ in KINDS]


def batch(
    rng: np.random.Generator, tokenizer: Qwen2Tokenizer, pairs: list[tuple[str, str, str, str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels [B, L], padded on the left, labels -100 outside the answer."""
    rows, told = [], dict(zip(KINDS, instructions(rng), strict=True))
    for _ in range(BATCH):
        kind, idea = sample(rng, pairs)
        chat = enhance.messages(kind, idea)
        chat[0]["content"] = told[kind]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(asked).input_ids
        answer = tokenizer(completed(kind, idea) + "<|im_end|>").input_ids
        rows.append((ids, answer))
    longest = max(len(ids) + len(answer) for ids, answer in rows)
    ids = torch.zeros(BATCH, longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (asked, answer) in enumerate(rows):
        whole = torch.tensor(asked + answer)
        ids[row, -len(whole) :], mask[row, -len(whole) :] = whole, 1
        labels[row, -len(answer) :] = torch.tensor(answer)
    return ids, mask, labels


def train(steps: int = STEPS, seed: int = SEED) -> tuple[Qwen2Tokenizer, Qwen2ForCausalLM]:
    """Train the model. Its weights are rounded to bfloat16, as they are stored."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE, total_steps=steps, pct_start=0.1
    )
    progress, (trained, _) = Progress("enhancer", steps), data.split()
    for step in range(steps):
        ids, mask, labels = batch(rng, tokenizer, trained)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        progress(step, loss=float(loss.detach()))
    return tokenizer, model.eval().to(torch.bfloat16)


def evaluate(folder: Path, count: int = 120) -> dict[str, float]:
    """Share of ideas from unseen scenes that it completes exactly, by kind."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from wan_worker.timing.progress import Control

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    enhancer, control = enhance.Enhancer(tokenizer, model.eval()), Control()
    rng, (_, held) = np.random.default_rng(1), data.split()
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for _ in range(count):
        kind, idea = sample(rng, held)
        right[kind].append(enhancer.answer(kind, idea, control) == completed(kind, idea))
        if not right[kind][-1]:
            print(f"{kind}: {idea!r} -> {enhancer.answer(kind, idea, control)!r}")
    return {kind: round(float(np.mean(found)), 3) for kind, found in right.items()}


def main() -> None:
    """Train, write, evaluate."""
    parser = argparse.ArgumentParser(prog="python -m training.enhancer", description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("weights/tiny"), help="the result")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    tokenizer, model = train(options.steps)

    def save(part: Path) -> None:
        tokenizer.save_pretrained(part)
        compact = json.loads((part / "tokenizer.json").read_text("utf-8"))
        (part / "tokenizer.json").write_text(
            json.dumps(compact, separators=(",", ":"), ensure_ascii=False), "utf-8"
        )
        model.save_pretrained(part)

    put(options.weights / FOLDER, save)
    print(json.dumps(evaluate(options.weights / FOLDER), indent=2))


if __name__ == "__main__":
    main()
