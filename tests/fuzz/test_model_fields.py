"""Every field of a saved model may hold anything: the model is refused in one line, or it works."""

import copy
import json
import math
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from targets import folder

from ulmfit_fast import ULMFiT
from ulmfit_fast.nn.weights import Place
from ulmfit_fast.ulmfit.model_schema import describe

hypothesis = pytest.importorskip("hypothesis", reason="needs the package hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

TEXTS, LABELS = ["a fine film", "a dull film"] * 4, ["good", "bad"] * 4
# What a field may hold instead; the last one nests too deeply to be shown.
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 9, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 10**400),
    *(0.0, 0.5, 1.0, 1.5, -0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "word", "float32", "float8_e5m2", "1", "\x1b[2J", "\ud800", "é" * 5_000),
    *([], [1], [0.1] * 4, [math.nan] * 4, [[1]], ["a", "a"], [None], [{}], {}, {"a": 1}),
    json.loads("[" * 400 + "]" * 400),
]


@cache
def saved() -> Path:
    """A model with a preset whose stages have lists, nulls and numbers."""
    torch.manual_seed(0)
    sizes = {"emb_size": 4, "hidden_size": 4, "num_layers": 3, "max_vocab": 30, "min_freq": 1}
    model = ULMFiT(
        preset="fastai07", **sizes, lm_dropout={"gate_p": (0, 0, 0.1, 0)}, progress=False
    )
    model.pretrain(TEXTS * 4, epochs=1, batch_size=4)
    model.fit_classifier(TEXTS, LABELS, epochs=1)
    model.save(folder() / "fields")
    return folder() / "fields"


@cache
def good() -> str:
    return (saved() / "config.json").read_text()


def paths(value: object, path: tuple = ()) -> list[tuple]:
    """Return where each field stands, and each place of a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in items:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += paths(inner, (*path, key))
    return found


def changed(path: tuple, value: object, *, gone: bool = False) -> dict:
    config = json.loads(good())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    if gone:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return config


def assert_one_line(error: ValueError, directory: object) -> None:
    message = str(error)
    assert str(directory) in message and message.isprintable() and len(message) < 900, message
    assert "; " in message.removeprefix(str(directory)), f"no mend: {message}"


def test_every_field_is_checked_against_every_kind_of_value() -> None:
    """Some thousand configurations, none of which is built."""
    refused = 0
    for path in paths(json.loads(good())):
        for number, value in enumerate([*VALUES, None]):
            config = changed(path, copy.deepcopy(value), gone=number == len(VALUES))
            try:
                describe(Place("config.json"), config)
            except ValueError as error:
                refused += 1
                assert_one_line(error, "config.json")
    assert refused > 3_000


def test_no_field_of_a_network_takes_another_kind() -> None:
    """What the networks are made of takes none but its own kind."""
    parts = ("labels", "language_model", "language_model_dtype", "classifier", "single_file")
    for path in paths(json.loads(good())):
        if path[0] not in parts or path == ("labels",):
            continue
        own = copy.deepcopy(json.loads(good()))
        for key in path:
            own = own[key]
        for value in ({}, {"a": 1}, [[1]], [None], "\x1b[2J", math.nan, 10**400, 10**30, -1):
            if isinstance(own, dict) and value == {"a": 1} and path[-1] == "encoder":
                value = {}
            # A label may be any whole number, and a field that is left out has its default.
            if (path[0] == "labels" and isinstance(value, int)) or value == own:
                continue
            with pytest.raises(ValueError):
                describe(Place("config.json"), changed(path, value))


JSON = st.recursive(
    st.one_of(
        st.sampled_from(VALUES), st.integers(), st.floats(), st.booleans(), st.text(max_size=9)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(data=st.data())
@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_a_changed_field_is_refused_or_the_model_is_the_same(data: st.DataObject) -> None:
    config = json.loads(good())
    path = data.draw(st.sampled_from(paths(config)), label="path")
    config = changed(path, data.draw(JSON, label="value"), gone=data.draw(st.booleans()))
    directory = folder() / "changed field"
    shutil.copytree(saved(), directory, dirs_exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    try:
        found = ULMFiT.load(directory, device="cpu", progress=False)
    except ValueError as error:
        assert_one_line(error, directory)
        return
    whole = ULMFiT.load(saved(), device="cpu", progress=False)
    for name in ("language_model", "classifier"):
        ours, theirs = getattr(found, name), getattr(whole, name)
        if ours is not None:
            state = theirs.state_dict()
            assert all(torch.equal(v, state[n]) for n, v in ours.state_dict().items())
    if found.classifier is not None:
        assert found.predict(TEXTS[:1])[0] in found.labels
    # What can be read can be written, and read again.
    found.save(folder() / "again")
    assert ULMFiT.load(folder() / "again", progress=False).settings == found.settings
