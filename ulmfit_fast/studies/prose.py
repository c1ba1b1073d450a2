"""From a docstring to the English sentences in it, without layout, code, maths and citations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import lru_cache

# Sections that hold citations or lists of names, never sentences.
_SKIPPED_SECTIONS = {"references", "reference", "see also", "literature", "bibliography"}
# Directives whose body is prose; the body of any other directive is code, maths or a picture.
_PROSE_DIRECTIVES = {
    "note", "warning", "caution", "attention", "important", "tip", "hint", "seealso", "admonition",
    "deprecated", "versionadded", "versionchanged", "versionremoved", "topic", "function", "method",
    "class",
}  # fmt: skip
_NEXT_WORD = r"(?=[\"'(]*[A-Z0-9])"
_ABBREVIATIONS = re.compile(
    r"\b(?:e\.g|i\.e|etc|cf|vs|viz|resp|approx|al|figs?|eqs?|sec|ch|no|vol|pp|refs?|dr|mr|prof|st)"
    r"\.[\"')]*$",
    re.IGNORECASE,
)
_BOUNDARY = re.compile(rf"(?<=[.!?])[\"')]*\s+{_NEXT_WORD}")
_SECTION_RULE = re.compile(r"[-=~^*]{3,}")
_DIRECTIVE = re.compile(r"\.\. +([\w:-]+?)::(?:\s+(.*))?$")
_BULLET = re.compile(r"(?:[-*+•]|\(?(?:\d{1,2}|[a-z])[.)]|#\.)\s+(?=\S)")
_FIELD = re.compile(r":\w+(?: [^:`]*)?:(?!`)\s*")
_TYPED_ENTRY = re.compile(
    r"[`*]{0,3}[\w.]+[`*]{0,3}(?:,\s*[`*]{0,3}\w+[`*]{0,3})*"
    r"\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*:\s*"
)
_NAMED_ENTRY = re.compile(r"(?:``?|\*{0,2})(?=[a-z_]|\w+_)[\w.]+(?:``?)?\s*(?::|--?)\s+(?=\S)")
_NUMPY_ENTRY = re.compile(r"[*\\]{0,3}\w[\w.]*(?:, *[*\\]{0,3}\w+)* : ")
_ROLE = re.compile(r":[\w:+-]+:`(~?)([^`<]*?)\s*(?:<[^`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{0,2}")
_LITERAL = re.compile(r"``?(?:~[\w.]*\.(?=\w+`))?([^`]+)``?_{0,2}")
_CALL = re.compile(r"(?<=\w)\(\)")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}([^*\s](?:[^*]*[^*\s])?)\*{1,2}(?![\w*])")
_CITATION = re.compile(r"\s*\[[\w.#*-]+\]_")
_SYMBOL = re.compile(r":math:`(\w+)`|\$(\w+)\$")
_MATHS = re.compile(r":math:`[^`]*`")
_CODE_CHARACTERS = re.compile(r"[\\{}$^|@~#%\x00-\x1f]|://|\.\.|--| [=<>+*/] |[=<>]{2}")
# Upper case before lower case only: "Markov" and "IDs" are words, "keepDim" is a name.
_PLAIN_WORD = re.compile(r"(?:(?=[A-Za-z])[A-Z]*[a-z]*)(?:['-](?=[A-Za-z])[A-Z]*[a-z]*)*")
_TYPOGRAPHY = str.maketrans(
    {
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
    }
)
_EDGES = "\"'().,;:!?"
_FUNCTION_WORDS = frozenset(
    "a an the of to in is are be if for and or not by with as that this it on from which can will"
    " at used has have when into no all any than its was one should you we".split()
)


def prose_paragraphs(docstring: str) -> list[list[str]]:
    r"""Reduce a docstring to paragraphs of English sentences.

    >>> prose_paragraphs("Add two numbers.\n\n>>> add(1, 2)\n\nThey may be zero. See also `sub`.")
    [['Add two numbers.'], ['They may be zero.', 'See also sub.']]

    Args:
        docstring: the raw text, in reStructuredText, numpy or google layout.

    Returns:
        One list of sentences a paragraph; paragraphs without a sentence are dropped.
    """
    paragraphs = ([s for s in split_sentences(p) if is_english(s)] for p in _blocks(docstring))
    return [sentences for sentences in paragraphs if sentences]


def split_sentences(paragraph: str) -> list[str]:
    """Cut a paragraph behind ``.``, ``!`` or ``?`` when a capital or a digit follows.

    >>> split_sentences("Use a sparse format, e.g. CSR. It is faster.")
    ['Use a sparse format, e.g. CSR.', 'It is faster.']

    Args:
        paragraph: running text on one line.

    Returns:
        The sentences in order; an abbreviation does not end one.
    """
    sentences: list[str] = []
    start = 0
    for boundary in _BOUNDARY.finditer(paragraph):
        if _ABBREVIATIONS.search(paragraph, start, boundary.start()):
            continue
        sentences.append(paragraph[start : boundary.end()].strip())
        start = boundary.end()
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def is_english(sentence: str) -> bool:
    """Say whether a sentence reads as English rather than as code, maths or a list of names.

    >>> is_english("Return the shortest path between two nodes."), is_english("x = foo(bar)")
    (True, False)

    Args:
        sentence: one sentence without markup.

    Returns:
        True for at least three words, seven in ten of them plain, one of them a function word
        unless the sentence is short.
    """
    if _CODE_CHARACTERS.search(sentence) or not sentence[0].isalpha():
        return False
    words = sentence_key(sentence).split()
    if len(words) < 3 or words.count("#") > 0.3 * len(words):
        return False
    return len(words) < 7 or not _FUNCTION_WORDS.isdisjoint(words)


def sentence_key(sentence: str) -> str:
    """Reduce a sentence to what makes it the same sentence elsewhere: its plain words, in order.

    Names and numbers become ``#``, so boilerplate that differs only in the function it speaks of
    has one key.

    >>> sentence_key("See numpy.abs for 2 details.") == sentence_key("see torch.abs, for 3 details")
    True

    Args:
        sentence: one sentence.

    Returns:
        Lower-case words separated by single blanks.
    """
    return " ".join(filter(None, map(_word_key, sentence.split())))


@lru_cache(maxsize=200_000)
def _word_key(chunk: str) -> str:
    word = chunk.strip(_EDGES)
    return word.lower() if not word or _PLAIN_WORD.fullmatch(word) else "#"


def _blocks(docstring: str) -> Iterator[str]:
    """Yield the running text of each paragraph, list item and field, with inline markup removed."""
    block: list[str] = []
    indent, hanging = 0, False
    for line in _text_lines(docstring):
        text = line.strip()
        at = len(line) - len(line.lstrip())
        opened = _opening(text)
        level = at > indent if hanging else at == indent
        continues = bool(block and text) and not opened and level
        # The first line of a hanging item is shallower than the rest of it; later lines are level.
        if block and not continues:
            yield _inline(" ".join(block))
            block = []
        if not text:
            continue
        if not block:
            indent, hanging = at, opened > 0
        block.append(text[opened:])
    if block:
        yield _inline(" ".join(block))


def _opening(text: str) -> int:
    """Count the characters of a bullet, a field or an argument name in front of its description."""
    for pattern in (_BULLET, _FIELD, _TYPED_ENTRY, _NAMED_ENTRY):
        found = pattern.match(text)
        if found and not text.startswith(":math:"):
            rest = found.end()
            return rest + (_opening(text[rest:]) if pattern is _BULLET else 0)
    return 0


def _text_lines(docstring: str) -> Iterator[str]:
    """Yield the lines that may hold prose; each dropped stretch becomes one empty line."""
    lines = inspect.cleandoc(docstring).expandtabs().splitlines()
    skip_section = in_session = False
    skip_deeper = -1  # indentation below which nothing is prose, or -1
    for number, line in enumerate(lines):
        text = line.strip()
        at = len(line) - len(line.lstrip())
        below = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if not text:
            in_session = False
            yield ""
            continue
        if _SECTION_RULE.fullmatch(below) or text.rstrip(":").lower() in _SKIPPED_SECTIONS:
            skip_section = text.rstrip(":").lower() in _SKIPPED_SECTIONS
            skip_deeper = -1
            yield ""
            continue
        if skip_deeper >= 0 and at > skip_deeper:
            continue
        skip_deeper = -1
        in_session = in_session or text.startswith((">>>", "$ ", "%", "In ["))
        directive = _DIRECTIVE.match(text)
        if directive:
            yield ""
            prose = directive[1].lower() in _PROSE_DIRECTIVES
            skip_deeper = -1 if prose else at
            argument = directive[2] or ""
            if prose and argument.count(" ") > 2:
                yield " " * at + argument
            continue
        if text.startswith(".. "):
            skip_deeper = at
        if skip_section or in_session or text.startswith(("..", "|", "+-")) or not _has_word(text):
            yield ""
            continue
        if text.endswith("::"):
            skip_deeper = at
            line = line.rstrip()[:-1]
        if _NUMPY_ENTRY.match(text):
            yield ""
            continue
        yield line


def _has_word(text: str) -> bool:
    return any(c.isalpha() for c in text)


def _inline(text: str) -> str:
    """Replace inline markup by the words a reader sees; maths leaves a mark that is not English."""
    if "`" in text or "$" in text:
        text = _SYMBOL.sub(r"\1\2", text)
        text = _MATHS.sub("$", text)
        text = _ROLE.sub(lambda m: m[2].rsplit(".", 1)[-1] if m[1] else m[2], text)
        text = _LINK.sub(r"\1", text)
        text = _LITERAL.sub(r"\1", text)
    if "(" in text:
        text = _CALL.sub("", text)
    if "*" in text:
        text = _EMPHASIS.sub(r"\1", text)
    if "]_" in text:
        text = _CITATION.sub("", text)
    text = text.translate(_TYPOGRAPHY)
    return re.sub(r"\s+", " ", text).strip()
