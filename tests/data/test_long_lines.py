"""Lines and words of megabytes take bounded memory and time."""

import json
import os
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


LONG_LINES = """
import os, resource, sys, time
from pathlib import Path
from ulmfit_fast.data import Tokenizer, read_texts
from ulmfit_fast.data.tokens.vocab import Vocab

tokenizer = Tokenizer.from_vocab(Vocab(["the", "cat"]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in map(Path, sys.argv[1:]):
    # A process of its own, whose peak is that of this line.
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, path
        continue
    before, start = peak(), time.perf_counter()
    tokens = sum(map(len, tokenizer.encode_batch(read_texts(path))))
    print(tokens, (peak() - before) / 1024, time.perf_counter() - start, flush=True)
    os._exit(0)
"""
LINES_OF_10_MB = {
    "words": ("a.txt", "the cat ", 2_400_000),
    "words-csv": ("a.csv", "the cat ", 2_400_000),
    "words-jsonl": ("a.jsonl", "the cat ", 2_400_000),
    "one-word": ("a.txt", "ab", 100),
    "one-letter": ("a.txt", "a", 100),
    "digits": ("a.txt", "1,", 100),
    "dashes": ("a.txt", "a-", 9_000_000),
    "chinese": ("a.txt", "\u4e2d\u6587", 30),
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process for each line takes long by spawn")
def test_a_line_of_10_mb(tmp_path: Path) -> None:
    paths = []
    for kind, (name, unit, _) in LINES_OF_10_MB.items():
        text = unit * (10_000_000 // len(unit.encode()))
        written = {"a.txt": text, "a.csv": f"text\n{text}", "a.jsonl": json.dumps({"text": text})}
        paths.append(tmp_path / kind / name)
        paths[-1].parent.mkdir()
        paths[-1].write_text(written[name], encoding="utf-8")
    command = [sys.executable, "-c", LONG_LINES, *map(str, paths)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400).stdout
    for (kind, case), line in zip(LINES_OF_10_MB.items(), shown.splitlines(), strict=True):
        tokens, megabytes, seconds = map(float, line.split())
        assert tokens >= case[-1], kind
        assert megabytes < 600 and seconds < 60, kind


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
