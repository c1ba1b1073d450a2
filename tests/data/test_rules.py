import random
import re

import pytest

from ulmfit_fast.data.tokens.rules import apply_rules, restore_text
from ulmfit_fast.data.tokens.vocab import MAJ, REP, SPECIALS, UNK, UP, WREP


def shown(text: str) -> str:
    return " ".join(SPECIALS[p] if isinstance(p, int) else p for p in apply_rules(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Fish &amp; chips", "xxmaj fish & chips", id="ampersand"),
        pytest.param("AT&amp;amp;T", "xxup at&t", id="escaped-twice"),
        pytest.param("he said quot;noquot;", 'he said "noquot;', id="lost-ampersand"),
        pytest.param("it#39;s a champ; yes", "it # 39;s a champ; yes", id="not-an-entity"),
        pytest.param("one #39; two", "one ' two", id="stray-number"),
        pytest.param("?a=1&copy=2", "?a=1&copy=2", id="no-semicolon"),
        pytest.param("a<br />b<BR>c", "a b c", id="line-break"),
        pytest.param('a\\nb \\"c\\"', 'a b "c"', id="escapes"),
        pytest.param("3 @.@ 5 well @-@ known <unk>", "3.5 well-known xxunk", id="wikitext"),
        pytest.param("a <unk> @-@ b (<unk>)", "a xxunk -b ( xxunk )", id="unknown-joined"),
        pytest.param("good!!! bad!!", "good xxrep 3 ! bad!!", id="rep"),
        pytest.param("AAAA", "xxrep 4 a", id="rep-upper"),
        pytest.param("HELLOOO Yesss", "xxup hell xxrep 3 o xxmaj ye xxrep 3 s", id="rep-case"),
        pytest.param("\u54c8\u54c8\u54c8", "xxrep 3 \u54c8", id="rep-chinese"),
        pytest.param("no no no!", "xxwrep 3 no !", id="wrep-punctuation"),
        pytest.param("no no nothing", "no no nothing", id="wrep-other-word"),
        pytest.param("The The The", "xxwrep 3 xxmaj the", id="wrep-case"),
        pytest.param("yesss yesss yesss", " ".join(["ye xxrep 3 s"] * 3), id="wrep-of-rep"),
        pytest.param("- - - a", "- - - a", id="wrep-no-word"),
        pytest.param("and/or C:\\x #1", "and / or c: \\ x # 1", id="slashes"),
        pytest.param(" a \t b\n\nc\0d ", "a b c d", id="blanks"),
        pytest.param("I A b A. I,", "i a b a. i,", id="one-letter"),
        pytest.param("I'm I'M", "xxmaj i'm xxup i'm", id="contraction"),
        pytest.param("McDonald iPhone PYTHON3", "mcdonald iphone xxup python3", id="mixed-case"),
        pytest.param(
            "\u00c9T\u00c9 \u00c9t\u00e9", "xxup \u00e9t\u00e9 xxmaj \u00e9t\u00e9", id="accents"
        ),
        pytest.param("\ud800x", "\ufffdx", id="lone-surrogate"),
        pytest.param("", "", id="empty"),
    ],
)
def test_rules(text: str, expected: str) -> None:
    assert shown(text) == expected


def one_rule_after_the_other(text: str) -> str:
    """The rules as they are numbered, each over the whole text."""
    text = re.sub(r"(\S)\1{2,}", lambda m: f" xxrep {len(m[0])} {m[1]} ", text)
    words = r"(?<!\S)(?<!xxrep )(\w+)(?:\s+\1){2,}(?!\w)"
    text = re.sub(words, lambda m: f"xxwrep {len(m[0].split())} {m[1]}", text)
    text = re.sub(r"([/#])", r" \1 ", text)
    capitals = r"(?<!\S)(?=[^a-z\s]*[A-Z][^a-z\s]*[A-Z])[A-Z][^a-z\s]*(?!\S)"
    text = re.sub(capitals, lambda m: "xxup " + m[0].lower(), text)
    text = re.sub(r"(?<!\S)[A-Z](?=\S*[a-z])[^A-Z\s]+(?!\S)", lambda m: "xxmaj " + m[0], text)
    return " ".join(text.lower().split())


def test_chunk_by_chunk_equals_one_rule_after_the_other() -> None:
    draw = random.Random(0)
    # No word begins or ends with a run of its neighbour's letter: there the two may differ.
    words = "The the NO no X x a!!! Sooo ha. NO! and/or #1 (Bad) U.S.A. A1B zzz mcD no, 22".split()
    for _ in range(3_000):
        text = " ".join(draw.choices(words, weights=[4] * 6 + [1] * (len(words) - 6), k=8))
        # Punctuation is split off later, so it may stand apart here or not.
        ours, numbered = (
            re.sub(r"(\W)", r" \1 ", ruled).split()
            for ruled in (shown(text), one_rule_after_the_other(text))
        )
        assert ours == numbered, text


def test_marks_in_a_text_are_words() -> None:
    assert apply_rules("xxmaj xxbos XXPAD") == ["xxmaj", "xxbos", UP, "xxpad"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([MAJ, "it", "'s", MAJ, "john", "'s", "."], "It's John's.", id="contractions"),
        pytest.param(
            ["do", "n't", "(", "ever", ")", ",", "ok", "?"], "don't (ever), ok?", id="marks"
        ),
        pytest.param([UP, "nasa", REP, "3", "!"], "NASA!!!", id="rep"),
        pytest.param([WREP, "3", MAJ, "the", "cat"], "The The The cat", id="wrep"),
        pytest.param([2, "a", 3, 1, 1, 4], "a", id="dropped"),
        pytest.param([UNK, MAJ, UNK], "xxunk Xxunk", id="unknown"),
        pytest.param([REP, "x", MAJ], "x", id="no-count"),
        pytest.param([REP, "99999999999", "a"], "99999999999 a", id="absurd-count"),
        pytest.param([REP, "0", "a"], "0 a", id="zero-count"),
        pytest.param([REP, REP, "3", "4"], "444", id="digit"),
        pytest.param([], "", id="nothing"),
    ],
)
def test_restore(words: list[str | int], expected: str) -> None:
    assert restore_text(words) == expected
