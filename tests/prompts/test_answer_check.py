"""What a language model says around a prompt goes; what is no prompt is refused, with a reason."""

import pytest

from wan_worker.prompts import answer_check, enhance

CAT = "A grey cat walks along a garden wall in the evening sun while the camera follows it."
CHINESE = "一只灰色的猫在傍晚的阳光下沿着花园的墙慢慢走，镜头跟随着它。"
TOLD = enhance.instruction("video")


def fault(answer: str, asked: str = "a cat", tokens: int = 20) -> str | None:
    return answer_check.fault(answer_check.tidy(answer), asked, TOLD, tokens)


@pytest.mark.parametrize(
    "said",
    [
        CAT,
        f"  {CAT}\n",
        f"Enhanced prompt: {CAT}",
        f"**Enhanced Prompt:** {CAT}",
        f"## Video prompt\uff1a\n\n{CAT}",
        f"Sure! Here is the enhanced prompt for your video:\n\n{CAT}",
        f"Here's a more vivid version: {CAT}",
        f'"{CAT}"',
        f"“{CAT}”",
        f'Prompt: "{CAT}"',
        f'"Prompt: {CAT}"',
        f"```text\n{CAT}\n```",
        f"- {CAT}",
        f"> {CAT}",
        f"1. {CAT}",
        CAT.replace("grey cat", "**grey cat**"),
        CAT.replace(" in the evening", "\nin the\r\n evening"),
        f"<think>The user wants a cat.\nFine.</think>\n{CAT}",
    ],
)
def test_what_surrounds_a_prompt_is_taken_off(said: str) -> None:
    assert answer_check.tidy(said) == CAT


@pytest.mark.parametrize("label", ["提示词：", "优化后的提示词：", "改写后的视频描述:"])
def test_a_chinese_label_is_taken_off_too(label: str) -> None:
    assert answer_check.tidy(label + CHINESE) == CHINESE


@pytest.mark.parametrize(
    "text",
    [
        'A sign reads "OPEN" above the door of a bar called "Nora"',
        '"Hello", says the robot, and waves. "Bye"',
        "Here a river bends: on its bank stands a tower",
        "A prompter whispers: the actor smiles",
        "It's 5 o'clock on the station's clock",
    ],
)
def test_what_belongs_to_a_prompt_stays(text: str) -> None:
    assert answer_check.tidy(text) == text


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (CAT, "a cat"),
        (CHINESE, "一只猫"),
        (CHINESE, "一只猫 with a Nike T-shirt 在墙上走"),
        ("a cat", "a cat"),
        (CAT, "🐈 12345"),
        ("I can't dance, reads the sign that a robot holds up", "I can't dance, reads a sign"),
        ("Кошка идёт по стене", "кошка"),
    ],
)
def test_a_prompt_is_taken(answer: str, asked: str) -> None:
    assert fault(answer, asked) is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "was empty"),
        (" \n\t", "was empty"),
        ('""', "was empty"),
        ("Prompt:", "was empty"),
        ("...", "was empty"),
        ("a cat \x00 walks", "held control characters"),
        ("a cat \x1b[31m walks", "held control characters"),
        ("a cat \ufffd walks", "held control characters"),
        ("a cat \ud800 walks", "held control characters"),
        ("a cat walks and " + " ".join(f"sees {n}" for n in range(400)), "was too long"),
        ("I'm sorry, but I can't help with that.", "was a refusal"),
        ("I’m sorry, but that is not possible.", "was a refusal"),
        ("Sorry, I can only describe pictures.", "was a refusal"),
        ("I cannot create this description.", "was a refusal"),
        ("As an AI language model, I have no eyes.", "was a refusal"),
        ("Unfortunately, this breaks the rules.", "was a refusal"),
        (TOLD, "repeated its instruction"),
        (f"{CAT} {TOLD[-120:]}", "repeated its instruction"),
        ("a cat walks along " * 30, "went round in circles"),
        (CHINESE, "was in another language"),
        ("Кошка идёт по стене", "was in another language"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_reason(answer: str, why: str) -> None:
    found = fault(answer)
    assert found is not None
    assert found.startswith(why)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (CAT, "was in another language"),
        ("很抱歉，我无法满足这个要求。", "was a refusal"),
        ("作为一个人工智能，我不能这样做。", "was a refusal"),
    ],
)
def test_a_chinese_prompt_is_judged_alike(answer: str, why: str) -> None:
    assert (fault(answer, "一只猫在走") or "").startswith(why)


def test_the_video_models_own_tokens_are_the_limit() -> None:
    assert fault(CAT, tokens=512) is None
    assert fault(CAT, tokens=513) == "was too long for the video model"


def test_what_the_user_wrote_is_no_echo() -> None:
    own = f"a robot reads aloud: {TOLD[:150]}"
    assert fault(own, asked=own) is None


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a cat", "LATIN"),
        ("一只猫", "CJK"),
        ("Nike广告里的猫", "CJK"),
        ("a cat says 你好", "LATIN"),
        ("ねこがあるく", "CJK"),
        ("кошка", "CYRILLIC"),
        ("고양이", "HANGUL"),
        ("1 2 3 🐈", None),
    ],
)
def test_the_writing_system_is_that_of_most_words(text: str, script: str | None) -> None:
    assert answer_check.script(text) == script
