from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_cna.scoring.quality import ends_in_loop, is_degenerate, quality, quality_strict

PROSE = (
    "The harbour was quiet when the first boats came in. Gulls circled above the sheds, and a boy counted crates of "
    "mackerel while his uncle argued about the price of ice. Nobody noticed the small dog that had taken a fish from "
    "the lowest box and was carrying it, with great care, towards the lighthouse. By noon the wind had turned."
)
CODE = """def primes(limit):
    sieve = [True] * (limit + 1)
    for number in range(2, limit + 1):
        if sieve[number]:
            yield number
            for multiple in range(number * number, limit + 1, number):
                sieve[multiple] = False


if __name__ == "__main__":
    print(list(primes(100)))
"""
NORMAL = {
    "prose": PROSE,
    "short answer": "Yes.",
    "one letter": "B",
    "list": "1. Milk\n2. Eggs\n3. Bread\n4. Butter\n5. Salt\n6. Sugar\n7. Flour\n8. Yeast\n9. Oil\n10. Honey",
    "counting": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "code": CODE,
    "closing brackets": '{"a": {"b": {"c": {"d": [1, [2, [3, [4]]]]}}}}',
    "emphasis at the end": "And then he saw it. Nooooooooooo!!!!!!",
    "laughter": "That is a good joke. Ha ha ha!",
    "chinese": "港口很安静,第一批船只刚刚靠岸。海鸥在棚屋上空盘旋,一个男孩正在数鱼箱,他的叔叔在为冰价争吵。",
    "chinese and latin": "请使用Python编写程序,然后在GitHub上提交PR,最后用Docker部署到AWS服务器,再检查CPU和GPU。",
    "greetings": "Hello, Привет, مرحبا, नमस्ते, 你好, こんにちは, 안녕하세요, Γειά σου",
    "mathematics": "x² + y² = z², so ∫₀¹ x dx = 1/2 and ∑ 1/n² = π²/6.",
    "two verses": "Row, row, row your boat, gently down the stream. Row, row, row your boat, gently down the stream.",
}
BROKEN = {
    "empty": "",
    "white space": " \n\t\u00a0 ",
    "one character": "a" * 50,
    "token with spaces": "the " * 40,
    "five words": "no no no no no",
    "cut last turn": "We went there. " * 5 + "We we",
    "late character loop": PROSE + " a" + "h" * 40,
    "late tokens without spaces": PROSE + "\u200d" + "tion" * 9,
    "late sentence loop": PROSE + " The end is near, and there is no way to stop it now." * 3,
    "case and space vary": PROSE + " so BE it,\nso be  it, So be it, SO BE IT, so be it",
    "numbered sentence": "".join(f"{i}. Be kind to each other. " for i in range(1, 12)),
    "punctuation": "?!;:,.-_'/\\()&%$#@~^*+=<>|{}[]",
    "replacement characters": "The \ufffd\ufffd\ufffd port \ufffd\ufffd was",
    "consonants": "xkcd qwrtz plmkn bvcxz dfghj klmnp wrtzp sdfgh zxcvb mnbvc",
    "scripts in one word": "theмир woправд иsland thго нетs maкак есtь whнo",
}


@pytest.mark.parametrize("name", NORMAL)
def test_normal_text_is_not_degenerate(name: str) -> None:
    assert not is_degenerate(NORMAL[name])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_text_is_degenerate(name: str) -> None:
    assert is_degenerate(BROKEN[name])


def test_quality_is_the_papers_formula() -> None:
    assert quality("") == quality("one two three") == quality(".") == 1.0
    assert quality("a b c d") == 1.0
    assert quality("a b c d a b c d") == 4 / 5
    assert quality("a a a a a a a") == 1 / 4


def test_quality_strict_sees_what_quality_does_not() -> None:
    assert quality("") == 1.0 and quality_strict("") == quality_strict(" \n ") == 0.0
    assert quality("ab" * 50) == 1.0 and quality_strict("ab" * 50) == 2 / 93
    assert quality_strict(".") == quality_strict("seven c") == 1.0
    assert quality_strict(CODE) > 0.8, "indentation is not repetition"
    assert quality_strict(PROSE) > 0.95


def test_loop_limits() -> None:
    assert not ends_in_loop("word " + "h" * 23)
    assert ends_in_loop("word " + "h" * 24)
    assert not ends_in_loop("no no no no")
    assert ends_in_loop("no no no no no") and ends_in_loop(".....")
    assert not ends_in_loop("55555") and not ends_in_loop("....")
    unit = "abcdefghijklmnopqrstuvwxyz0123456789 +-?"
    assert len(unit) == 40
    assert ends_in_loop("start:" + unit * 3) and not ends_in_loop("start:" + unit * 2 + unit[:39])
    assert not ends_in_loop("start:" + unit[:39] * 3) and ends_in_loop("start:" + unit[:39] * 4)


@given(st.text())
def test_ranges_and_order(text: str) -> None:
    strict = quality_strict(text)
    assert 0.0 <= strict <= quality(text) <= 1.0
    assert (strict == 0.0) == (not text.split())
    if strict < 0.5:
        assert is_degenerate(text)


@given(st.text(alphabet="abcdefgh ,.", min_size=1, max_size=60).filter(str.strip), st.integers(24, 60))
def test_anything_said_often_enough_is_a_loop(unit: str, turns: int) -> None:
    assert is_degenerate(unit * turns)
    assert is_degenerate(PROSE + " " + unit.strip() * turns)


def _naive_loop(text: str) -> bool:
    """`ends_in_loop` without numbers, straight from its docstring, in cubic time."""
    for period in range(1, len(text)):
        covered = period
        while covered < len(text) and text[-covered - 1] == text[-covered - 1 + period]:
            covered += 1
        turns = 3 if period >= 40 else 4
        if covered >= max(24, turns * period) or covered == len(text) > 4 * period:
            return True
    return False


@settings(max_examples=300)
@given(st.text(alphabet="ab ", max_size=40), st.text(alphabet="abc", min_size=1, max_size=45), st.integers(0, 8))
def test_loops_agree_with_a_naive_search(start: str, unit: str, turns: int) -> None:
    text = start + unit * turns
    assert ends_in_loop(text) == _naive_loop(text)


@pytest.mark.parametrize("text", ["abc" * 33_000, "ab" * 50_000 + "c", " ".join(map(str, range(16_000)))])
def test_time_is_near_linear(text: str) -> None:
    start = time.perf_counter()
    is_degenerate(text)
    quality(text)
    assert time.perf_counter() - start < 5.0, "quadratic time would be minutes"
