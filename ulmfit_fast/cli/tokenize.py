"""The command `ulmfit-fast tokenize`: a corpus to a store of ids."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ulmfit_fast.cli.app import (
    SkipBadRows,
    TableOptions,
    check_again,
    check_apart_from,
    check_writable,
    flat,
    names_in,
    on_error,
    say,
    say_next,
    typer,
)
from ulmfit_fast.system.directories import read_version
from ulmfit_fast.system.files import user_path

if TYPE_CHECKING:
    from ulmfit_fast.data import Tokenizer
    from ulmfit_fast.data.reading.lines import OnError

__all__ = ["tokenize", "tokenizer_of"]

_LAYOUTS = "plain, wikitext, imdb, ag_news, dbpedia or yelp"


@flat
def tokenize(
    *,
    text: Annotated[
        list[Path],
        typer.Option(
            "--text",
            help=".txt (one text a line), .csv, .tsv, .xlsx, .jsonl, .parquet, or a folder of "
            ".txt; repeatable.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory of the store that is written.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Saved model, or another store, whose tokenizer is used."),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", help="word, subword or spacy, learnt here; or a tokenizer.json."
        ),
    ] = "word",
    max_vocab: Annotated[int, typer.Option("--max-vocab", help="Largest vocabulary.")] = 60_000,
    min_freq: Annotated[int, typer.Option("--min-freq", help="Rarest word kept.")] = 3,
    layout: Annotated[
        str, typer.Option("--layout", help=f"How --text is laid out: {_LAYOUTS}.")
    ] = "plain",
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes; all CPUs when not given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "--anew", help="Replace what is there.")
    ] = False,
    skip_bad_rows: SkipBadRows = False,
    table: TableOptions,
) -> None:
    """Turn a corpus, also one larger than memory, into ids."""
    from ulmfit_fast.data import Tokenizer, TokenStore, read_texts

    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out {out} is a file, expected a directory; choose another name")
    learnt = user_path(tokenizer) if tokenizer.endswith(".json") else None
    check_apart_from(out, [*text, model, learnt], is_text=False)
    there = names_in(out)
    if there and not TokenStore.is_store(out):
        raise FileExistsError(
            f"--out {out} holds something other than a token store; choose a new directory"
        )
    check_again(out, there, overwrite=overwrite)
    check_writable(out)
    rows = on_error(skip_bad_rows)
    source = _source(text, layout, rows)
    try:
        found = _tokenizer(model, tokenizer)
        if found is None:
            again = _source(text, layout, rows)
            texts = read_texts(again, on_error=rows, **table.arguments())
            say("learning the vocabulary")
            found = Tokenizer.train(texts, tokenizer, max_vocab, min_freq)  # type: ignore[arg-type]
        say(f"a {found.kind} tokenizer with a vocabulary of {len(found.vocab)}")
        store = TokenStore.build(
            out,
            source,
            found,
            on_error=rows,
            workers=workers,
            **table.arguments(),
        )
    except KeyboardInterrupt:
        say("interrupted; nothing is written")
        raise typer.Exit(130) from None
    say(f"{len(store)} documents, {len(store.ids)} tokens in {out}")
    if model is None:
        say_next("pretrain", "--text", out, "--out", f"{out}-model")
    else:
        say_next("fine-tune", "--model", model, "--text", out, "--out", f"{out}-tuned")


def _source(paths: list[Path], layout: str, rows: OnError) -> Any:
    """Return what `read_texts` takes."""
    from ulmfit_fast.data.reading.published import LAYOUTS

    if layout == "plain":
        return paths
    if layout not in LAYOUTS:
        raise ValueError(f"--layout is {layout!r}, expected {_LAYOUTS}")
    # Read the first of each here, so that a wrong path is refused before any work.
    return itertools.chain.from_iterable([LAYOUTS[layout](path, on_error=rows) for path in paths])


def _tokenizer(model: Path | None, name: str) -> Tokenizer | None:
    """Return the tokenizer that is there already, or None if one is to be learnt."""
    if model is not None:
        return tokenizer_of(model)
    if not name.endswith(".json"):
        return None
    return _ours(user_path(name), or_theirs=True)


def tokenizer_of(model: Path) -> Tokenizer:
    """Return the tokenizer of a saved model or a store.

    Args:
        model: its directory.

    Raises:
        FileNotFoundError: if it has none.
        ValueError: if it is damaged.
    """
    return read_version(model, _tokenizer_in)


def _tokenizer_in(model: Path) -> Tokenizer:
    path = model / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"--model {model} has no tokenizer.json, expected a saved model or a store"
        )
    return _ours(path)


def _ours(path: Path, *, or_theirs: bool = False) -> Tokenizer:
    from ulmfit_fast.data import Tokenizer
    from ulmfit_fast.system.files import parse_json

    try:
        text = path.read_text(encoding="utf-8")
        content = parse_json(text, "the tokenizer")
        if or_theirs and not (isinstance(content, dict) and "format" in content):
            return Tokenizer.from_huggingface(path)
        return Tokenizer.from_json(text)
    except ValueError as error:
        raise ValueError(error if str(path) in str(error) else f"{path}: {error}") from error
