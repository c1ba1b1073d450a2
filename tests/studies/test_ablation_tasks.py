"""The ablation's tasks: what is labelled, what is held out, and what the corpora must not hold."""

import pytest

from ulmfit_fast.studies import tasks
from ulmfit_fast.studies.docstrings import Document
from ulmfit_fast.studies.parameter_types import parameter_descriptions, type_of
from ulmfit_fast.studies.tasks import Task, own_task, read_task

DOCSTRINGS = [
    (
        "pkg a.py:f",
        """Add things.

    Parameters
    ----------
    x, y : array_like, optional
        The numbers that are to be added,
        in any order.
    axis : int or None
        Along which axis the numbers are added.
    out : ndarray or float
        Where the sum of the numbers goes to.
    names : list of str

        Not a description, after a blank line.
    """,
    ),
    (
        "pkg b.py:g",
        """Add more things.

    Args:
        scale (float, optional): how much larger the
            sum of them becomes.
        where (:class:`torch.Tensor`): which of the ``numbers`` are added.
        key (Callable[[int], bool]): says which of them come first.
        short (str): a name.
        again (str): says which of them come first.
    """,
    ),
]


@pytest.mark.parametrize(
    ("documented", "expected"),
    [
        ("int", "int"),
        ("int, optional (default=3)", "int"),
        ("integer, optional, default: 3", "int"),
        ("str or None", "str"),
        ("Optional[str]", "str"),
        ("list of ints", "collection"),
        ("tuple of (int, str)", "collection"),
        ("Tuple[int, int], optional", "collection"),
        ("Dict[str, Any]", "dict"),
        (":class:`torch.Tensor`", "array"),
        ("``array_like``", "array"),
        ("numpy.ndarray", "array"),
        ("bool. Default: True", "bool"),
        ("function", "callable"),
        ("int or float", None),
        ("int | None | str", None),
        ("int, str", None),
        ("Union[int, str]", None),
        ("NetworkX graph", None),
        ("{'C', 'F'}, optional", None),
        ("", None),
    ],
)
def test_documented_types(documented, expected):
    assert type_of(documented) == expected


def test_descriptions_of_both_layouts(monkeypatch):
    monkeypatch.setattr(
        "ulmfit_fast.studies.parameter_types.raw_docstrings", lambda package: iter(DOCSTRINGS)
    )
    assert parameter_descriptions("pkg") == [
        ("The numbers that are to be added, in any order.", "array"),
        ("Along which axis the numbers are added.", "int"),
        ("how much larger the sum of them becomes.", "float"),
        ("which of the numbers are added.", "array"),
    ]


def test_the_same_words_under_two_types_are_no_example(monkeypatch):
    test_descriptions_of_both_layouts(monkeypatch)
    assert not any("come first" in text for text, _ in parameter_descriptions("pkg"))


def test_subpackages_of_documents(monkeypatch):
    monkeypatch.setattr(tasks, "_LEAST_DOCUMENTS", 3)
    monkeypatch.setattr(tasks, "_MOST_DOCUMENTS", 4)
    words = "one two three four five six seven"
    documents = [Document(f"pkg big/m.py:f{i}", f"{words} {i}") for i in range(8)]
    documents += [Document(f"pkg small/m.py:f{i}", f"{words} small {i}") for i in range(2)]
    documents += [Document("pkg top.py:f", f"{words} top"), Document("pkg big/n.py:f", "Too short")]
    monkeypatch.setattr(tasks, "read_docstrings", lambda package: documents)
    assert tasks.subpackage_documents("pkg") == [(f"{words} {i}", "big") for i in (0, 2, 4, 6)]


def sentence(i):
    return f"This is the text number {i} of a corpus with the words a{i} b{i} c{i}."


@pytest.fixture
def packages(monkeypatch):
    """Two packages; the first documents of each repeat labelled texts."""
    labelled = [(sentence(i), "even" if i % 2 == 0 else "odd") for i in range(20)]
    monkeypatch.setattr(tasks, "parameter_descriptions", lambda p: labelled if p == "numpy" else [])
    monkeypatch.setattr(tasks, "subpackage_documents", lambda p: labelled)
    documents = [Document(f"{i}", sentence(i)) for i in range(40)]
    monkeypatch.setattr(tasks, "read_docstrings", lambda package: documents)
    return labelled


@pytest.mark.parametrize("name", ["types", "subpackages"])
def test_no_language_model_reads_a_test_text(packages, name):
    task = read_task(name, test=5)
    assert len(task.test_texts) == 5 and len(task.train_texts) == 15
    assert set(task.test_texts).isdisjoint([*task.general, *task.target, *task.train_texts])
    assert set(task.train_texts) <= set(task.target)
    assert dict(zip(task.train_texts, task.train_labels, strict=True)).items() <= set(packages)
    assert read_task(name, test=5) == task != read_task(name, test=5, seed=1)


def test_unknown_tasks_and_sizes_are_refused(packages):
    with pytest.raises(ValueError, match="task is 'x', expected one of swap, types, subpackages"):
        read_task("x")
    with pytest.raises(ValueError, match="test is 20, expected 1 to 19"):
        read_task("types", test=20)


def test_subsets_are_nested_draws():
    task = Task("t", [str(i) for i in range(50)], list("ab" * 25), [], [], [], [])
    small, large = task.subset(10, seed=3)[0], task.subset(30, seed=3)[0]
    assert large[:10] == small and len(set(large)) == 30
    assert task.subset(10, seed=4)[0] != small
    texts, labels = task.subset(50, seed=0)
    assert all(label == "ab"[int(text) % 2] for text, label in zip(texts, labels, strict=True))
    with pytest.raises(ValueError, match="count is 51, expected 2 to 50"):
        task.subset(51, seed=0)


def test_one_document_in_forty_measures_perplexity():
    task = Task("t", [], [], [], [], [str(i) for i in range(81)], [str(i) for i in range(40)])
    train, held_out = task.general_split()
    assert held_out == ["0", "40", "80"] and len(train) == 78
    assert task.target_split()[1] == ["0"]


@pytest.fixture
def files(tmp_path):
    rows = ["text,label", *(f"{sentence(i)},{'ab'[i % 2]}" for i in range(100))]
    (tmp_path / "reviews.csv").write_text("\n".join(rows))
    (tmp_path / "general.txt").write_text("\n".join(sentence(i) for i in range(95, 200)))
    return tmp_path


def test_a_task_of_ones_own(files):
    task = own_task(files / "reviews.csv", general=[files / "general.txt"], test=10)
    assert task.name == "reviews" and len(task.test_texts) == 10 and len(task.target) == 90
    assert set(task.test_texts).isdisjoint([*task.general, *task.target])
    more = own_task(
        files / "reviews.csv",
        general=[files / "general.txt"],
        target=[files / "general.txt"],
        test=10,
    )
    assert len(more.target) > 180
    again = own_task(
        files / "reviews.csv",
        general=[files / "general.txt"],
        target=[files / "reviews.csv"],
        test=10,
    )
    assert set(again.test_texts).isdisjoint(again.target)


def test_too_little_text_is_refused(files):
    (files / "short.txt").write_text("one text\n")
    with pytest.raises(ValueError, match="the general corpus has 1 texts, expected at least 80"):
        own_task(files / "reviews.csv", general=[files / "short.txt"], test=10)
    with pytest.raises(ValueError, match="test is 100, expected 1 to 99"):
        own_task(files / "reviews.csv", general=[files / "general.txt"], test=100)
