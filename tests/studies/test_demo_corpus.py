"""The demo's text and task: prose out of docstrings, swaps that leave no trace but the order."""

import gc
import logging
import random
import re
import sys
from collections import Counter

import pytest

from ulmfit_fast.studies.baselines import majority_baseline, tfidf_baseline
from ulmfit_fast.studies.docstrings import Document, read_docstrings
from ulmfit_fast.studies.prose import is_english, prose_paragraphs, sentence_key, split_sentences
from ulmfit_fast.studies.swapped_words import (
    build_task,
    swap_words,
    usable_sentences,
    without_sentences,
)

NUMPY_LAYOUT = """
    Compute the mean of the values. It is computed along one axis.

    Parameters
    ----------
    a : array_like
        The values to average over, in any order.
    axis : {int, None}, optional
        Axis along which the means are computed.

    See Also
    --------
    median : The middle value of the array.

    Examples
    --------
    The first example takes a list.

    >>> mean([1, 2])
    this output is not prose at all
    """
GOOGLE_LAYOUT = """Applies a rule to the :class:`~torch.Tensor` that is given [1]_.

    .. math::
        the formula is not a sentence

    .. note::
        This is **differentiable** with respect to ``input_size``.

    Args:
        input (Tensor, optional): the tensor that holds
            the values of the batch.
        dim (int): a number :math:`n` of the dimension, not :math:`n^2`.

    Use it like this::

        model = this is code for sure

    - The first point of the list is short.
    - The second point of the list is
      spread over two lines.

    .. [1] The citation is dropped with its year.
    """


def test_numpy_layout():
    assert prose_paragraphs(NUMPY_LAYOUT) == [
        ["Compute the mean of the values.", "It is computed along one axis."],
        ["The values to average over, in any order."],
        ["Axis along which the means are computed."],
        ["The first example takes a list."],
    ]


def test_google_and_rst_layout():
    assert prose_paragraphs(GOOGLE_LAYOUT) == [
        ["Applies a rule to the Tensor that is given."],
        ["This is differentiable with respect to input_size."],
        ["the tensor that holds the values of the batch."],
        ["Use it like this:"],
        ["The first point of the list is short."],
        ["The second point of the list is spread over two lines."],
    ]


def test_blank_lines_and_bullets_separate_paragraphs():
    text = "Return the name\n\nIt is\nnever empty.\n* It has no dots.\n* It has no blanks.\n"
    assert prose_paragraphs(text) == [
        ["Return the name"],
        ["It is never empty."],
        ["It has no dots."],
        ["It has no blanks."],
    ]


@pytest.mark.parametrize(
    "text, count",
    [
        ("See e.g. The Book. It is long.", 2),
        ("It has 3.5 points. 2 of them count! Do they?", 3),
        ('He said "stop." Then it stopped.', 2),
        ("Works of Smith et al. Are cited.", 1),
        ("one. two. three", 1),
    ],
    ids=["abbreviation", "numbers", "quotation", "authors", "lower-case"],
)
def test_split_sentences(text, count):
    assert len(split_sentences(text)) == count
    assert " ".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    "text, english",
    [
        ("The first of the nodes is returned.", True),
        ("Return the name", True),
        ("node, edge, graph, path, tree, cycle, leaf, root", False),
        ("f_i x_1 y_2 z_3 is the sum", False),
        ("Then a == b is the case.", False),
        ("Two words.", False),
        ("1 is the first number.", False),
    ],
    ids=["sentence", "short", "list", "names", "code", "tiny", "number"],
)
def test_is_english(text, english):
    assert is_english(text) is english


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path that must not be imported."""
    root = tmp_path / "somepkg"
    files = {
        "__init__.py": '"""The package of the test."""\nraise RuntimeError("imported")\n',
        "a.py": (
            'class A:\n    """The class of the module."""\n    def f(self):\n'
            '        """Return the value of the thing."""\n        return "\\d"\n'
            'if A:\n    async def g():\n        """See :func:`a.f` for all the details."""\n'
        ),
        "b.py": '"""Return the value of the thing. See `b.g` for all the details. Here it is."""\n',
        "c.py": (
            'add_newdoc("m", "f", ("attr", """The attribute is added later."""))\n'
            'x = _add_docstr(torch.x, r"""The one is written """ + """in {a}.""".format(a=1))\n'
            'add_docstr_all("y", """It has {a}.\n\nThe method is added as well.""".format(**d))\n'
        ),
        "broken.py": '"""This is a text in a broken file."""\nx = = 1\n',
        "latin.py": '# -*- coding: latin-1 -*-\n"""The caf\xe9 is in a file with a cookie."""\n',
        "long.py": '"""One text in a very long file."""\n' + "x = 1\n" * 2000,
        "tests/test_a.py": '"""The tests are not read at all."""\n',
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    monkeypatch.syspath_prepend(tmp_path)
    return "somepkg"


def test_read_docstrings(package, caplog):
    with caplog.at_level(logging.INFO, logger="ulmfit_fast"):
        documents = read_docstrings(package)
    assert {d.source.removeprefix("somepkg "): d.text for d in documents} == {
        "__init__.py:": "The package of the test.",
        "a.py:A": "The class of the module.",
        "a.py:A.f": "Return the value of the thing.",
        "a.py:g": "See a.f for all the details.",
        "b.py:": "Here it is.",
        "c.py:m.f.attr": "The attribute is added later.",
        "c.py:y": "The method is added as well.",
        "latin.py:": "The café is in a file with a cookie.",
    }
    assert documents == read_docstrings(package)
    assert "7 files, 1 unreadable ones skipped" in caplog.text
    assert "8 documents" in caplog.text
    assert package not in sys.modules and gc.isenabled()


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("not_installed_here", ModuleNotFoundError, r"pip install 'ulmfit-fast\[demo\]'"),
        ("numpy.linalg", ValueError, "'numpy.linalg' is not a top-level package name"),
        ("enum", ValueError, "'enum' is a single module"),
    ],
    ids=["missing", "dotted", "module"],
)
def test_packages_that_cannot_be_read(name, error, message):
    with pytest.raises(error, match=message):
        read_docstrings(name)


@pytest.fixture(scope="module")
def numpy_documents():
    """Real text: numpy is there wherever the package is."""
    return read_docstrings("numpy")


def test_numpy_gives_readable_text(numpy_documents):
    text = " ".join(d.text for d in numpy_documents)
    words = text.split()
    assert len(words) > 50_000
    assert sum(w.strip("\"'().,;:!?").isalpha() for w in words) > 0.85 * len(words)
    assert not set("{}$\\|") & set(text) and ">>>" not in text


def test_each_sentence_stands_once(numpy_documents):
    keys = Counter(
        sentence_key(s)
        for d in numpy_documents
        for p in d.text.split("\n")
        for s in split_sentences(p)
    )
    assert sum(n - 1 for n in keys.values()) <= 0.001 * len(keys)


@pytest.fixture(scope="module")
def task(numpy_documents):
    return build_task(numpy_documents, held_out=200, train=400, seed=3)


def test_labels_balance_from_the_front(task):
    for labels, total in ((task.train_labels, 400), (task.test_labels, 200)):
        assert len(labels) == total
        assert all(labels[:n].count("swapped") == n // 2 for n in range(2, total + 1, 2))


def test_a_swap_moves_two_words_and_nothing_else(task):
    for text, label, original in zip(task.test_texts, task.test_labels, task.held_out, strict=True):
        if label == "intact":
            assert text == original
            continue
        parts, whole = (
            re.split(r"([\s,;:.!?()\"]+)", text),
            re.split(r"([\s,;:.!?()\"]+)", original),
        )
        moved = [i for i, (a, b) in enumerate(zip(parts, whole, strict=True)) if a != b]
        left, right = moved
        assert (parts[left], parts[right]) == (whole[right], whole[left])
        assert right == left + 2 and parts[left + 1] == " " and left > 0
        assert parts[left].lower() != parts[right].lower()


def test_sentences_are_of_the_asked_length_and_occur_once(task):
    bags = [" ".join(sorted(sentence_key(t).split())) for t in task.train_texts + task.test_texts]
    assert len(set(bags)) == len(bags)
    for text in task.train_texts + task.test_texts:
        assert 8 <= len(re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*|[\d.]*\d|[^\w\s]", text)) <= 25
        assert text[0].isupper() and text[-1] in ".!?"


def test_swaps_are_spread_over_the_sentence():
    sentence = "The colour of every large box is kept in one small list here."
    places = Counter(
        next(
            i
            for i, (a, b) in enumerate(zip(sentence.split(), swapped.split(), strict=True))
            if a != b
        )
        for swapped in (swap_words(sentence, random.Random(seed)) for seed in range(1100))
    )
    assert sorted(places) == list(range(1, 12))
    assert max(places.values()) < 2 * min(places.values())


def test_language_model_sees_nothing_of_the_test(numpy_documents, task):
    sources = {d.source for d in task.lm_documents}
    seen = " | ".join(
        f" {sentence_key(s)} "
        for d in task.lm_documents
        for p in d.text.split("\n")
        for s in split_sentences(p)
    )
    held = [sentence_key(s) for s in task.held_out]
    origin = {
        sentence_key(s): d.source
        for d, pool in zip(numpy_documents, usable_sentences(numpy_documents), strict=True)
        for s in pool
    }
    assert not {origin[key] for key in held} & sources
    assert not any(f" {key} " in seen for key in held)
    assert not any(f" {' '.join(key.split()[-8:])} " in seen for key in held)
    assert 0.6 * len(numpy_documents) < len(sources) < len(numpy_documents)


def test_training_sentences_come_from_documents_the_language_model_may_see(task):
    bags = {
        " ".join(sorted(sentence_key(s).split()))
        for pool in usable_sentences(task.lm_documents)
        for s in pool
    }
    assert all(" ".join(sorted(sentence_key(t).split())) in bags for t in task.train_texts)


def test_task_follows_its_seed(numpy_documents, task):
    assert build_task(numpy_documents, held_out=200, train=400, seed=3) == task
    assert (
        build_task(numpy_documents, held_out=200, train=400, seed=4).test_texts != task.test_texts
    )


def test_subsets_are_balanced_and_nested(task):
    small, large = task.subset(50, seed=1), task.subset(100, seed=1)
    assert small[1].count("swapped") == 25 and large[1].count("swapped") == 50
    assert set(small[0]) < set(large[0]) < set(task.train_texts)
    assert task.subset(100, seed=2)[0] != large[0]
    for count in (0, 7, 402):
        with pytest.raises(ValueError, match=f"count={count} must be even"):
            task.subset(count, seed=0)


def test_without_sentences_knows_repeats_and_long_runs():
    held_out = "The order of the rows is the order of the nodes in the list."
    texts = {
        "case": "First. the Order of the rows is the order of the nodes in the list",
        "run": "Here the order of the rows is the order that was asked for.",
        "short": "Here the order of the rows is not kept.",
        "other": "Nothing of this is held out.",
    }
    documents = [Document(source, text) for source, text in texts.items()]
    assert [d.source for d in without_sentences(documents, [held_out])] == ["short", "other"]


@pytest.mark.parametrize(
    "held_out, train, message",
    [
        (20_000, 2, "held_out=20000 and train=2 need as many usable sentences"),
        (2, 20_000, "pass more documents or ask for fewer"),
        (3, 2, "held_out=3 must be even"),
        (2, 0, "train=0 must be even and at least 2"),
    ],
    ids=["test", "train", "odd", "none"],
)
def test_counts_that_cannot_be_met(numpy_documents, held_out, train, message):
    with pytest.raises(ValueError, match=message):
        build_task(numpy_documents, held_out=held_out, train=train, seed=0)


def test_swap_words_refuses_a_sentence_without_a_pair():
    with pytest.raises(ValueError, match="no two neighbouring words"):
        swap_words("Nodes, edges.", random.Random(0))


def test_single_words_say_nothing(task):
    accuracy = tfidf_baseline(
        task.train_texts, task.train_labels, task.test_texts, task.test_labels, ngrams=(1, 1)
    )
    # Four standard deviations of a coin thrown 200 times.
    assert abs(accuracy - 0.5) < 4 * 0.0354


def test_baselines_learn_what_is_there():
    texts = [f"the {a} {b}" for a in ("red", "blue") for b in ("box", "ball", "book", "bag")]
    labels = [text.split()[1] for text in texts]
    assert tfidf_baseline(texts, labels, texts[::-1], labels[::-1]) == 1.0
    assert majority_baseline([*labels, "red"], ["red", "blue", "blue", "blue"]) == 0.25
