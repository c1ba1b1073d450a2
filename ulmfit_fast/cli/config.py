"""Options of a command from a file, and as a file."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ulmfit_fast.cli.app import guarded, typer
from ulmfit_fast.system.files import user_path

__all__ = ["ConfigOptions", "config_lines", "given_options"]

_NO_SETTINGS = {"config", "print_config", "help"}
# Of these one that is given takes the place of what a file says of the others.
_EXCLUSIVE = (("valid", "valid_column", "no_valid"), ("lm", "preset"), ("resume", "overwrite"))
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    Path: "a string",
}


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
        known, kinds, defaults = _flags_of(context), _kinds_of(context), _Defaults(context)
        for name, value in _toml(path).items():
            flag = name.replace("-", "_")
            if flag not in known:
                from ulmfit_fast.data.columns import nearest

                raise ValueError(
                    f"--config {path} has {name!r:.60}, expected options of "
                    f"{context.command.name}{nearest(flag, known)}: {', '.join(sorted(known))}"
                )
            if known[flag] in defaults:
                raise ValueError(f"--config {path} has {flag!r} twice; leave one out")
            defaults[known[flag]] = _checked(f"--config {path}: {name}", value, kinds[known[flag]])
        context.default_map = defaults

    read()
    return path


class _Defaults(dict[str, Any]):
    """What a file says, but for options in whose place another one is given in the shell."""

    def __init__(self, context: typer.Context) -> None:
        super().__init__()
        self._context = context

    def __contains__(self, name: object) -> bool:
        others = {other for group in _EXCLUSIVE if name in group for other in group} - {name}
        return super().__contains__(name) and not any(map(self._is_given, others))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def _is_given(self, name: str) -> bool:
        # Those that are given are read before those that are not.
        source = self._context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"


def _kinds_of(context: typer.Context) -> dict[str, Any]:
    """Return the type of each parameter of a command, without None."""
    callback = context.command.callback
    assert callback is not None
    command = inspect.unwrap(callback, stop=lambda own: hasattr(own, "__signature__"))
    found = {}
    for name, kind in get_type_hints(command).items():
        members = [own for own in get_args(kind) if own is not type(None)]
        found[name] = members[0] if type(None) in get_args(kind) else kind
    return found


def _checked(where: str, value: Any, kind: Any) -> Any:
    """Return a value of a file if it is of an option's type; one alone may stand for a list."""
    if get_origin(kind) is list:
        values = value if isinstance(value, list) else [value]
        return [_checked(where, own, get_args(kind)[0]) for own in values]
    # A share and the number of a column are strings as well; a bool is an int in Python alone.
    fits: Any = {float: (int, float), str: (str, int, float), Path: str}.get(kind, kind)
    if not isinstance(value, fits) or (isinstance(value, bool) and kind is not bool):
        shown = json.dumps(value, default=str, ensure_ascii=False)
        raise ValueError(f"{where} is {shown:.60}, expected {_KINDS[kind]}")
    return str(value) if kind is str else value


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
        # Some editors begin a file with a mark, which TOML does not know.
        found: dict[str, Any] = toml.loads(user_path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"--config {path} does not exist, expected a .toml file") from None
    except IsADirectoryError:
        raise IsADirectoryError(f"--config {path} is a directory, expected a .toml file") from None
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
    """Return a value as TOML has it, which for most is how JSON does."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        # Where JSON has Infinity, TOML has inf.
        return repr(value)
    text = json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
