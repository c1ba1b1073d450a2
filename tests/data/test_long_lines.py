"""Lines and words of megabytes take bounded memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ulmfit_fast.data import Tokenizer, read_texts
from ulmfit_fast.data.reading import lines


def test_a_line_above_the_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "_LINE_BYTES", 100)
    path = tmp_path / "a.txt"
    path.write_bytes(b"first text\n" + b"x" * 99 + b"\n" + b"y" * 450 + b"\nsecond text\n")
    with pytest.raises(ValueError, match=r"line 3: longer than 100 bytes, expected a text; put"):
        list(read_texts(path))
    found = list(read_texts(path, on_error="skip"))
    assert found == ["first text", "x" * 99, "second text"]
    path.write_bytes(b"first text\n" + b"y" * 450 + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"line 2: longer than"):
        list(read_texts(path))


def test_lines_that_a_carriage_return_ends_have_the_same_limit(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(lines, "_LINE_BYTES", 100)
    path = tmp_path / "a.txt"
    short = [f"text {number}" + "z" * (number % 40) for number in range(200)]
    path.write_bytes("\r".join(short).encode() + b"\r")
    assert path.stat().st_size > 20 * 100 and list(read_texts(path)) == short
    path.write_bytes(b"first\r" + b"x" * 99 + b"\r" + b"y" * 450 + b"\rlast\r")
    with pytest.raises(ValueError, match=r"line 3: longer than 100 bytes, expected a text; put"):
        list(read_texts(path))
    assert list(read_texts(path, on_error="skip")) == ["first", "x" * 99, "last"]
    # The end of a line may fall on the end of what is read at once.
    for size in range(90, 100):
        texts = ["a" * size, "b", "c" * (99 - size), "d" * 150 + "e" * size, "f"]
        for end in ("\r", "\r\n", "\n"):
            path.write_bytes("".join(text + end for text in texts).encode())
            expected = [text for text in texts if text and len(text) < 150]
            assert list(read_texts(path, on_error="skip")) == expected


LONG_LINE = """
import resource, sys, time
from pathlib import Path
from ulmfit_fast.data import Tokenizer, read_texts
from ulmfit_fast.data.tokens.vocab import Vocab

path = Path(sys.argv[1])
tokenizer = Tokenizer.from_vocab(Vocab(["the", "cat"]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = peak(), time.perf_counter()
tokens = sum(map(len, tokenizer.encode_batch(read_texts(path))))
print(tokens, (peak() - before) / 1024, time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit", "least"),
    [
        pytest.param("a.txt", "the cat ", 2_400_000, id="words"),
        pytest.param("a.csv", "the cat ", 2_400_000, id="words-csv"),
        pytest.param("a.jsonl", "the cat ", 2_400_000, id="words-jsonl"),
        pytest.param("a.txt", "ab", 100, id="one-word"),
        pytest.param("a.txt", "a", 100, id="one-letter"),
        pytest.param("a.txt", "1,", 100, id="digits"),
        pytest.param("a.txt", "a-", 9_000_000, id="dashes"),
        pytest.param("a.txt", "\u4e2d\u6587", 30, id="chinese"),
    ],
)
def test_a_line_of_10_mb(tmp_path: Path, name: str, unit: str, least: int) -> None:
    text = unit * (10_000_000 // len(unit.encode()))
    written = {"a.txt": text, "a.csv": f"text\n{text}", "a.jsonl": json.dumps({"text": text})}
    (tmp_path / name).write_text(written[name], encoding="utf-8")
    command = [sys.executable, "-c", LONG_LINE, str(tmp_path / name)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    tokens, megabytes, seconds = map(float, shown.split())
    assert tokens >= least
    assert megabytes < 600 and seconds < 60


def test_a_word_of_millions_of_letters_is_cut(monkeypatch) -> None:
    tokenizer = Tokenizer.train(["ab cd"], min_freq=1)
    monkeypatch.setattr("ulmfit_fast.data.tokens.rules._LONGEST_CHUNK", 4)
    shown = ["xxbos", "abcd", "xxup", "abcd", "xxrep", "4", "x", "cd"]
    assert tokenizer.tokens("abcd ABCDxxxxcd") == shown
    (ids,) = tokenizer.encode_batch(["abcdab"])
    assert len(ids) == 3 and ids[2] == tokenizer.vocab.index("ab")


def test_long_chunks_are_not_remembered() -> None:
    encode = Tokenizer.train(["ab cd"], min_freq=1)._engine.encoder()
    first = encode(["ab " + "x" * 50 + " " + "cd," * 100])[0].tolist()
    assert max(len(chunk) for chunk in encode._known if isinstance(chunk, str)) == 50
    assert encode(["ab " + "x" * 50 + " " + "cd," * 100])[0].tolist() == first
