"""The page of the shell's commands, written from the program itself when the site is built."""

from __future__ import annotations

from typer.main import get_command

from ulmfit_fast.cli.program import app

HEAD = """# Commands

`ulmfit-fast COMMAND --help` shows the same. An option in bold is needed; [Files and the
shell](command-line.md) says what they read and write."""


def page() -> str:
    """Return every command in its group, with its example, its options and their help."""
    parts, group = [HEAD], None
    for name, command in get_command(app).commands.items():
        if command.rich_help_panel != group:
            group = command.rich_help_panel
            parts.append(f"## {group}")
        parts += [f"### {name}", command.help or ""]
        if command.epilog:
            parts.append(f"```sh\n{command.epilog.removeprefix('Example: ')}\n```")
        context = command.make_context(name, [], resilient_parsing=True)
        records = [option.get_help_record(context) for option in command.params]
        if rows := [_row(*record) for record in records if record]:
            parts.append("\n".join(["| option | what it does |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _row(option: str, text: str) -> str:
    needed = text.removesuffix("[required]")
    option = f"`{option}`" if needed == text else f"**`{option}`**"
    cells = (option, needed.strip().replace("*", r"\*").replace("<", "&lt;"))
    return "| {} | {} |".format(*(cell.replace("|", r"\|") for cell in cells))
