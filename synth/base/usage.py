"""The command line, parsed; what cannot be is one line in place of the parser's box."""

import contextlib
import difflib
import inspect
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial, wraps
from typing import Any

import tyro

from synth.base.errors import UserError

Commands = Mapping[str, Callable[..., Any]]

HELP = ("-h", "--help")
OF_PARSER = "--tyro-"
BREAK = r"(?<=\S)\n(?: {8,})?(?=\S)"
"""Within a paragraph of a docstring, or within what it says of an option."""
RULE = r"[-─╰╯]{8,}"
IN_WORDS = {"INT": "a whole number", "FLOAT": "a number"}


def parse(
    name: str, description: str, commands: Commands, words: Sequence[str], console: bool
) -> Callable[[], Any]:
    """The chosen command with its options, not run yet.

    Shows help and exits where that is asked for, if `console`. Raises UserError, which names the
    word, what is allowed and what may have been meant.
    """
    if words and words[0] in HELP:
        if console:
            print(overview(name, description, commands))
        raise SystemExit(0)
    if not words or not words[0].startswith(OF_PARSER):
        require_names(name, commands, words)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.extras.subcommand_cli_from_dict(
                {each: deferred(command) for each, command in commands.items()},
                prog=name,
                description=description,
                args=words,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                console_outputs=console,
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        of = " ".join([name, *words[:1]])
        raise UserError(f"{in_one_line(told.getvalue(), words, of)}; see {of} --help") from None


def overview(name: str, description: str, commands: Commands) -> str:
    """What the program does, and a line for each command."""
    width = max(map(len, commands))
    lines = [
        f"  {each:{width}}  {inspect.cleandoc(command.__doc__ or '').splitlines()[0].rstrip('.')}"
        for each, command in commands.items()
    ]
    usage = f"usage: {name} COMMAND [OPTIONS]"
    return "\n".join([usage, "", description, "", *lines, "", f"{name} COMMAND --help says more"])


def deferred(command: Callable[..., Any]) -> Callable[..., Any]:
    """Parsed as `command`, but only tied to its options; its help has no breaks in sentences."""

    @wraps(command)
    def tied(*positional: Any, **options: Any) -> Callable[[], Any]:
        return partial(command, *positional, **options)

    tied.__doc__ = re.sub(BREAK, " ", inspect.cleandoc(command.__doc__ or ""))
    vars(tied)["__signature__"] = inspect.signature(command)
    del vars(tied)["__wrapped__"]  # whose docstring would be read
    return tied


# Names


def require_names(name: str, commands: Commands, words: Sequence[str]) -> None:
    """Raise UserError for a command or an option that is not there, and for one left out."""
    command = commands.get(words[0]) if words else None
    if command is None:
        got = f"{words[0]}: no command" if words else "no command given"
        meant = suggestion(words[0], commands) if words else ""
        meant = meant or f"; there are: {', '.join(commands)};"
        raise UserError(f"{got}{meant} see {name} --help")
    options = options_of(command)
    given = [word.split("=")[0].replace("_", "-") for word in words[1:] if word.startswith("--")]
    if "--help" in given or "-h" in words:
        return
    of = f"{name} {words[0]}"
    for option in given[: given.index("--") if "--" in given else None]:
        if option not in options and not option.startswith(OF_PARSER):
            meant = suggestion(option, options) or ";"
            raise UserError(f"{option}: no option of {of}{meant} see {of} --help")
    for option, is_required in options.items():
        if is_required and option not in given:
            raise UserError(f"{option}: missing, {of} needs it; see {of} --help")


def options_of(command: Callable[..., Any]) -> dict[str, bool]:
    """The options as they are typed, and whether each has to be given."""
    found: dict[str, bool] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            found |= {
                field.name: field.default is field.default_factory is MISSING
                for field in fields(parameter.annotation)
            }
        elif parameter.kind is parameter.KEYWORD_ONLY:
            found[name] = parameter.default is parameter.empty
    return {"--" + name.replace("_", "-"): is_required for name, is_required in found.items()}


def suggestion(word: str, allowed: Collection[str]) -> str:
    """What may have been meant, as the end of a sentence; empty where nothing is like it."""
    longer = [each for each in allowed if each.startswith(word)]
    near = longer[:2] or difflib.get_close_matches(word, allowed, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


# Values


def in_one_line(box: str, words: Sequence[str], of: str) -> str:
    """What the parser says in a box, shortly where its words are known, else as they are.

    of: the command that was parsed.
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    lines = [line.strip(" |│") for line in plain.splitlines()[1:]]  # the first is the title
    while lines and re.fullmatch(RULE, lines[0]):
        lines.pop(0)
    end = next((n for n, line in enumerate(lines) if re.fullmatch(RULE, line)), len(lines))
    text = " ".join(filter(None, lines[:end]))
    if found := re.match(r"Error parsing (--\S+):", text):
        option = found[1]
        form = lines[lines.index("Argument helptext:") + 1].removeprefix(option).strip()
        return f"{option}: got {given(option, words)}, needs {IN_WORDS.get(form, form)}"
    if found := re.match(r"Missing value for argument '(--\S+)'. Expected (\d+) values", text):
        needs = "a value" if found[2] == "1" else f"{found[2]} values"
        return f"{found[1]}: got {given(found[1], words)}, needs {needs}"
    if found := re.match(r"invalid choice '(.*)' for argument '(\S+)'. .*\((.*?),?\)", text):
        allowed = [choice.strip("'") for choice in found[3].split(", ")]
        allowed = sorted({*allowed} - {"None"}) if "None" in allowed else allowed
        return f"{found[2]}: got {found[1]}, allowed: {', '.join(allowed)}"
    if text.startswith("Missing from "):
        return f"{lines[1]}: missing, {of} needs it"
    if found := re.match(r"Unrecognized options: (.*)", text):
        return f"{found[1]}: not understood by {of}"
    return text


def given(option: str, words: Sequence[str]) -> str:
    """The values of an option as they were typed."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == option:
            after = words[place + 1 :]
            end = next((n for n, each in enumerate(after) if each.startswith("--")), len(after))
            return value or " ".join(after[:end]) or "nothing"
    return "nothing"
