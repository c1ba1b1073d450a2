r"""The xx-rules: what is done to a text before it is split into words, and the way back.

In the order in which they take effect:

1. Remains of HTML are undone: entities, also those that lost their ampersand, `<br />`, a written
   `\n` or `\"`, and WikiText's ` @-@ ` and `<unk>`.
2. A character that stands three times or more in a row becomes `xxrep n c`.
3. A word that stands three times or more in a row becomes `xxwrep n word`.
4. `/`, `#` and the backslash stand alone.
5. Blanks, line ends and NULs only separate.
6. What stands between two blanks in capitals becomes `xxup` and its lower case.
7. What stands between two blanks with one capital, its first character, becomes `xxmaj` and its
   lower case. A word of one letter is lowered without a mark.
8. Everything is lower case.

Whatever stands between two blanks (a chunk) goes through rules 2 and 6 to 8 independent of its
neighbours. A text repeats its chunks, so a caller can do that part once for each distinct chunk.
Marks are the ids of the specials, words are strings: a user who writes "xxmaj" writes a word.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from operator import eq

from ulmfit_fast.data.tokens.vocab import MAJ, REP, SPECIALS, UNK, UP, WREP

__all__ = [
    "ENTITY",
    "SURROGATE",
    "Piece",
    "apply_rules",
    "chunk_pieces",
    "restore_text",
    "split_chunks",
]

Piece = str | int

# html.unescape alone would also turn the "&copy" of "?a=1&copy=2" into a sign.
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_STRAY_ENTITY = re.compile(r"(?:&|(?<!\w))(#(?:3[4689]|14[5-8]|160)|amp|apos|gt|lt|nbsp|quot);")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_WIKITEXT_JOINER = re.compile(r" @([.,-])@ ")
_RUN = re.compile(r"(\S)\1{2,}")
_WORD = re.compile(r"\w+")
SURROGATE = re.compile("[\ud800-\udfff]")

_GLUED_LEFT = re.compile(
    r" ([,.;:!?)\]}%]+(?= |$)|n['\u2019]t\b|['\u2019](?:s|m|d|ll|re|ve)\b)",
)
_GLUED_RIGHT = re.compile(r"([(\[{]) ")
# A language model may write any number after xxrep.
_MAX_COUNT_DIGITS = 3
# Regular expressions give up on a word of some million letters, or take 50 bytes for each.
_LONGEST_CHUNK = 100_000


def split_chunks(text: str) -> list[Piece]:
    """Apply the rules that look at more than one chunk (1, 3, 4 and 5).

    >>> split_chunks("no no no, and/or&nbsp;not")
    [6, '3', 'no', ',', 'and', '/', 'or', 'not']

    Args:
        text: any string; lone surrogates become U+FFFD.

    Returns:
        Chunks of the text, and the mark `xxwrep` as its id.
    """
    if not text.isascii():
        text = SURROGATE.sub("\ufffd", text)
    text = _undo_html(text)
    for sign in "/#\\":
        text = text.replace(sign, f" {sign} ")
    chunks = text.replace("\0", " ").split()
    # Few texts have two equal chunks in a row, and this look costs far less than the loop.
    if any(map(eq, chunks, chunks[1:])):
        return _mark_repeated_words(chunks)
    return list(chunks)


def _undo_html(text: str) -> str:
    if "&" in text:
        text = ENTITY.sub(lambda match: html.unescape(match[0]), text)
    if ";" in text:
        text = _STRAY_ENTITY.sub(lambda match: html.unescape(f"&{match[1]};"), text)
    if "<" in text:
        text = _LINE_BREAK.sub(" ", text)
        # A word of its own, also where a joiner or a sign touches it.
        text = text.replace("<unk>", " <unk> ")
    if "\\" in text:
        text = text.replace("\\n", " ").replace('\\"', '"')
    if " @" in text:
        text = _WIKITEXT_JOINER.sub(r"\1", text)
    return text


def _mark_repeated_words(chunks: list[str]) -> list[Piece]:
    marked: list[Piece] = []
    position = 0
    while position < len(chunks):
        word, end = chunks[position], position + 1
        while end < len(chunks) and chunks[end] == word:
            end += 1
        count, rest = end - position, ""
        if count > 1 and end < len(chunks):
            # The last one may carry the punctuation: "no no no!"
            match = _WORD.match(chunks[end])
            if match and match[0] == word:
                count, rest, end = count + 1, chunks[end][len(word) :], end + 1
        # A word that rule 2 takes apart is no longer one word.
        if count > 2 and _WORD.fullmatch(word) and not _RUN.search(word):
            marked += [WREP, str(count), word]
            marked += [rest] if rest else []
        else:
            marked += chunks[position:end]
        position = end
    return marked


def chunk_pieces(chunk: str) -> list[Piece]:
    """Apply the rules that look at one chunk alone (2, 6, 7 and 8).

    >>> chunk_pieces("HAPPY!!!!")
    [7, 'happy', 5, '4', '!']

    Args:
        chunk: a string without blanks; beyond 100,000 characters it counts as several.

    Returns:
        Lower-case strings still to be split into words, and marks as ids.
    """
    if chunk == "<unk>":
        return [UNK]
    if len(chunk) > _LONGEST_CHUNK:
        starts = range(0, len(chunk), _LONGEST_CHUNK)
        return [p for start in starts for p in chunk_pieces(chunk[start : start + _LONGEST_CHUNK])]
    pieces: list[Piece] = []
    start = 0
    for run in _RUN.finditer(chunk):
        pieces += _lowered(chunk[start : run.start()])
        pieces += [REP, str(len(run[0])), run[1].lower()]
        start = run.end()
    return pieces + _lowered(chunk[start:])


def _lowered(word: str) -> list[Piece]:
    lower = word.lower()
    if word == lower:
        return [word] if word else []
    if word[0].isupper() and sum(map(str.isalpha, word)) > 1:
        if word.isupper():
            return [UP, lower]
        if word[1:] == word[1:].lower():
            return [MAJ, lower]
    return [lower]


def apply_rules(text: str) -> list[Piece]:
    """Apply all rules to a text.

    >>> apply_rules("Soooooo good")
    ['s', 5, '6', 'o', 'good']

    Args:
        text: any string.

    Returns:
        Lower-case strings without blanks, still to be split into words, and marks as ids.
    """
    pieces: list[Piece] = []
    for chunk in split_chunks(text):
        pieces += chunk_pieces(chunk) if isinstance(chunk, str) else [chunk]
    return pieces


def restore_text(words: Iterable[Piece]) -> str:
    """Undo the rules as far as it goes: capitals, repetitions, and blanks around punctuation.

    >>> restore_text([2, 8, "it", "'s", 7, "nasa", 5, "3", "!"])
    "It's NASA!!!"

    Args:
        words: words and specials as ids; of the specials, only an unknown word shows ("xxunk").

    Returns:
        The text. A mark without the words that belong to it is dropped.
    """
    shown: list[str] = []
    case, repeat, count = 0, 0, 0
    for word in words:
        if isinstance(word, int):
            if word in (MAJ, UP):
                case = word
                continue
            if word in (REP, WREP):
                case, repeat, count = 0, word, 0
                continue
            if word != UNK:
                continue
            word = SPECIALS[UNK]
        elif repeat and not count and _is_count(word):
            count = int(word)
            continue
        if case:
            word = word.upper() if case == UP else word[:1].upper() + word[1:]
        if count:
            word = word * count if repeat == REP else " ".join([word] * count)
        shown.append(word)
        case, repeat, count = 0, 0, 0
    return _GLUED_RIGHT.sub(r"\1", _GLUED_LEFT.sub(r"\1", " ".join(shown)))


def _is_count(word: str) -> bool:
    return word.isdecimal() and len(word) <= _MAX_COUNT_DIGITS and int(word) > 0
