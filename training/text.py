"""The tokenizer and the umT5 encoder: a closed vocabulary of caption words, letters for the rest.

Promise: any text can be tokenised; what is outside the vocabulary becomes letters or <unk>.
"""

from itertools import chain

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from . import data

WORDS = (
    *data.COLOURS,
    *data.KINDS,
    *data.MOTIONS,
    *[
        "a",
        "an",
        "the",
        "on",
        "in",
        "of",
        "to",
        "with",
        "and",
        "grey",
        "shape",
        "background",
        "moving",
        "moves",
        "going",
        "standing",
        "stands",
    ],
    *["static", "not", "at", "rest", "upwards", "downwards", "video", "picture"],
)
MAX_LENGTH = 512  # what the Wan pipelines pad to


def build_tokenizer() -> T5TokenizerFast:
    """Unigram: caption words (also capitalised) score far above letters. T5's special tokens."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = dict.fromkeys(chain.from_iterable((w, w.capitalize()) for w in WORDS))
    letters = [chr(c) for c in range(0x21, 0x7F)]
    vocabulary = [(token, 0.0) for token in special]
    vocabulary += [("▁", -8.0)]
    vocabulary += [("▁" + piece, -3.0) for piece in pieces]
    vocabulary += [(letter, -10.0) for letter in letters]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=MAX_LENGTH)


def build_encoder(vocabulary: int) -> UMT5EncoderModel:
    """Two layers of width 96, no dropout."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=96,
            d_kv=24,
            d_ff=192,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def tokenise(tokenizer: T5TokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L], with L of the longest text. Texts are cleaned like pipeline prompts."""
    batch = tokenizer(
        [prompt_clean(text) for text in texts],
        padding="longest",
        max_length=MAX_LENGTH,
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return batch.input_ids, batch.attention_mask


def embed(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text context for `transformer.PaddedAttention`: [B, L+1, D] and its bias [B, 1, 1, L+1].

    The pipeline pads a text of n tokens with 512 - n zero vectors, and its cross-attention attends
    to them. They are all equal. So one zero vector with a score raised by log(512 - n) replaces
    them exactly.
    """
    hidden = encoder(ids, mask).last_hidden_state * mask.unsqueeze(-1)
    hidden = torch.cat([hidden, torch.zeros_like(hidden[:, :1])], dim=1)
    tokens = mask.sum(dim=1, keepdim=True)
    zeros = torch.log((MAX_LENGTH - tokens).clamp_min(1e-6).float())
    bias = torch.cat([torch.where(mask > 0, 0.0, -torch.inf), zeros], dim=1)
    return hidden, bias[:, None, None, :]
