"""Is a language model's answer a prompt? What surrounds it is removed; a bad answer is refused.

Pure functions of text; each has its test. A chat model sometimes chats, refuses, loops, or repeats
its instruction. None of that may reach the video model. The user's text and the model's answer are
only data here: nothing but a prompt can result from them.
Not covered: whether the answer is a good prompt, and whether it is true to the idea.
"""

import re
import unicodedata
import zlib
from typing import Final

from wan_worker.catalog.models import MAX_PROMPT_TOKENS

MAX_CHARACTERS: Final = 2_500
"""About what 512 umT5 tokens of English hold; the tokens themselves are counted too."""

ECHO_WORDS: Final = 8
"""So many of the instruction's words in a row count as the instruction."""

LOOP_RATIO: Final = 0.3
"""Text that compresses below this share of its size repeats itself; prose stays above 0.4."""

_WRAPPERS: Final = (
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("‘", "’"),
    ("«", "»"),
    ("「", "」"),
    ("`", "`"),
)
_LABEL: Final = re.compile(
    r"""
      (?:sure|certainly|of\ course|okay|ok)\s*[,!.]\s*(?=here\b)
    | here(?:'s|\u2019s|\s+is|\s+are)\b[^:：\n]{0,80}[:：]
    | (?:(?:the|my|your)\s+)?
      (?:(?:enhanced|rewritten|revised|improved|expanded|detailed|final|new)\s+)?
      (?:(?:video|image|motion|text)[\s-]+)*
      (?:prompt|description|caption|output|answer|result)\s*[:：]
    | (?:优化|改写|增强|扩写|润色|最终|重写)?后?的?(?:视频|图像|图片)?(?:提示词|描述|结果)\s*[:：]
    """,
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL: Final = re.compile(
    r"""
      (?:i['\u2019]?m|i\ am)\s+(?:so\ |very\ |really\ )?(?:sorry|afraid|unable|not\ able)\b
    | (?:sorry|apologies|unfortunately)\b
    | i\s+(?:can['\u2019]?t|cannot|can\ not|won['\u2019]?t|will\ not|must\ decline)\b
    | as\ an?\ (?:ai|artificial|language)\b
    | (?:很|非常|十分)?(?:抱歉|对不起|遗憾) | (?:作为|身为)(?:一个|一名)?(?:人工智能|AI|语言模型)
    | 我(?:无法|不能|没办法|不可以)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_IDEOGRAPHS: Final = ("CJK", "HIRAGANA", "KATAKANA")


def tidy(answer: str) -> str:
    """The answer as one paragraph of plain text, without markdown, labels and quotation marks."""
    text = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL)
    text = re.sub(r"^\s*```\w*\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:#{1,6}|>|[-*•]|\d{1,2}[.)])\s+", "", text, flags=re.MULTILINE)
    text = re.sub(r"\*\*(.+?)\*\*|__(.+?)__", lambda m: m[1] or m[2], text)
    text = " ".join(text.split())
    while (shorter := _unwrapped(text)) != text:
        text = shorter
    return text


def _unwrapped(text: str) -> str:
    """The text without one label before it, or one pair of quotation marks around all of it."""
    label = _LABEL.match(text)
    if label is not None:
        return text[label.end() :].strip()
    for left, right in _WRAPPERS:
        inner = text[1:-1]
        if text[:1] == left and text[-1:] == right and left not in inner and right not in inner:
            return inner.strip()
    return text


def fault(answer: str, asked: str, instruction: str, tokens: int) -> str | None:
    """Why a tidied answer can't be used as the prompt; None if it can.

    Args:
        asked: the user's prompt.
        instruction: what the model was told to do.
        tokens: the answer's length in umT5 tokens.
    """
    if not any(character.isalnum() for character in answer):
        return "was empty"
    if has_controls(answer):
        return "held control characters"
    if len(answer) > MAX_CHARACTERS or tokens > MAX_PROMPT_TOKENS:
        return "was too long for the video model"
    if _REFUSAL.match(answer) and not _REFUSAL.match(asked):
        return "was a refusal"
    if echoes(answer, instruction, asked):
        return "repeated its instruction"
    if loops(answer):
        return "went round in circles"
    asked_script = script(asked)
    if asked_script is not None and script(answer) != asked_script:
        return "was in another language than the prompt"
    return None


def has_controls(text: str) -> bool:
    """Whether it holds control characters, unassigned ones, or parts of broken text."""
    return any(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cs", "Cn", "Co") for c in text)


def echoes(answer: str, instruction: str, asked: str) -> bool:
    """Whether the answer repeats words of the instruction that the user did not write too."""
    instructed = _runs(instruction) - _runs(asked)
    return not instructed.isdisjoint(_runs(answer))


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + ECHO_WORDS]) for i in range(len(words) - ECHO_WORDS + 1)}


def loops(answer: str) -> bool:
    """Whether it says the same thing over and over. Greedy decoding can do that."""
    data = answer.encode()
    return len(data) > 200 and len(zlib.compress(data, 9)) < LOOP_RATIO * len(data)


def script(text: str) -> str | None:
    """The writing system of most of its words (``LATIN``, ``CJK``, ``CYRILLIC``, ...), or None.

    A word counts once, and each ideograph counts once. So a brand name in Latin letters does not
    make a Chinese prompt English.
    """
    counts: dict[str, int] = {}
    previous = None
    for character in text:
        name = unicodedata.name(character, "") if character.isalpha() else ""
        found = name.split(" ")[0] or None
        if found in _IDEOGRAPHS:
            found, previous = "CJK", None
        if found is not None and found != previous:
            counts[found] = counts.get(found, 0) + 1
        previous = None if found == "CJK" else found
    return max(counts, key=lambda name: counts[name]) if counts else None
