"""Options of a command from a file, and as a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ulmfit_fast.cli.app import guarded, typer
from ulmfit_fast.system.files import user_path

__all__ = ["ConfigOptions", "config_lines", "given_options"]

_NO_SETTINGS = {"config", "print_config", "help"}


def _flags_of(context: typer.Context) -> dict[str, str]:
    """Return the parameter of each option of a command, by the option's name in a file."""
    return {
        flag.lstrip("-").replace("-", "_"): own.name
        for own in context.command.params
        for flag in own.opts
        if own.name is not None and own.name not in _NO_SETTINGS
    }


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of a file as defaults of those that are not given."""
    if path is None or context.resilient_parsing:
        return path

    @guarded
    def read() -> None:
        known, defaults = _flags_of(context), {}
        for name, value in _toml(user_path(path)).items():
            flag = name.replace("-", "_")
            if flag not in known:
                from ulmfit_fast.data.columns import nearest

                raise ValueError(
                    f"--config {path} has {name!r:.60}, expected options of "
                    f"{context.command.name}{nearest(flag, known)}: {', '.join(sorted(known))}"
                )
            defaults[known[flag]] = value
        context.default_map = defaults

    read()
    return path


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib as toml
    else:
        try:
            import tomli as toml
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "--config needs Python 3.11, or the package tomli: pip install tomli"
            ) from None
    try:
        found: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"--config {path} does not exist, expected a .toml file") from None
    except ValueError as error:
        raise ValueError(f"--config {path} is not valid TOML: {error}") from error
    return found


@dataclass(frozen=True)
class ConfigOptions:
    """Where options come from beside the command line, and what shows them."""

    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE.toml",
            help="Options by name (valid = 0.2); those that are given here count more.",
            is_eager=True,
            callback=_read_config,
        ),
    ] = None
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Write all that the run would use, for --config."),
    ] = False


def given_options(context: typer.Context, *left_out: str) -> dict[str, Any]:
    """Return the options of the command that runs, by their names in a file.

    Args:
        context: of the command.
        left_out: names of those that say nothing of what is computed.
    """
    return {
        flag: context.params[name]
        for flag, name in _flags_of(context).items()
        if flag not in left_out
    }


def config_lines(
    options: Mapping[str, Any], further: Mapping[str, Mapping[str, Any]]
) -> Iterable[str]:
    r"""Yield options as lines of TOML, those without a value and further settings as comments.

    >>> print(*config_lines({"lr": 0.01, "valid": None}, {"model": {"emb_size": 96}}), sep="\n")
    lr = 0.01
    # valid =
    <BLANKLINE>
    # What the preset and the defaults say, for the record:
    # model.emb_size = 96

    Args:
        options: by name.
        further: settings that are no options, in groups.
    """
    for name, value in options.items():
        yield f"# {name} =" if value is None else f"{name} = {_value(value)}"
    yield ""
    yield "# What the preset and the defaults say, for the record:"
    for group, values in further.items():
        yield from (f"# {group}.{name} = {json.dumps(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    """Return a value as TOML has it, which for these kinds is how JSON does."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
