"""The command line, parsed; what cannot be is one line in place of the parser's box."""

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from typing import Any, NoReturn

import tyro
from tyro import _errors  # private: the one place where the parser says what it refuses

from synth.base.errors import UserError

Commands = Mapping[str, Callable[..., Any]]

HELP = ("-h", "--help")
BREAK = r"(?<=\S)\n(?: {8,})?(?=\S)"
"""Within a paragraph of a docstring, or within what it says of an option."""
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

    def refuse(event: _errors.ParseErrorEvent) -> NoReturn:
        raise UserError(refusal(event, name, commands, words))

    with _errors.on_parse_error(refuse):
        return tyro.extras.subcommand_cli_from_dict(
            {each: deferred(command) for each, command in commands.items()},
            prog=name,
            description=description,
            args=words,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            console_outputs=console,
        )


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


# What cannot be parsed


def refusal(
    event: _errors.ParseErrorEvent, name: str, commands: Commands, words: Sequence[str]
) -> str:
    """Why these words are refused, and where to read on, in one line."""
    chosen = words[0].replace("_", "-") if words else ""
    if chosen not in commands:
        reason = f"{words[0]}: no command" if words else "no command given"
        meant = suggestion(chosen, commands) if words else ""
        reason += meant or f"; there are: {', '.join(commands)}"
        of = name
    else:
        of = f"{name} {chosen}"
        reason = refused_word(event, of, options_of(commands[chosen]), words)
    return f"{reason}{'' if reason.endswith('?') else ';'} see {of} --help"


def refused_word(
    event: _errors.ParseErrorEvent, of: str, options: Collection[str], words: Sequence[str]
) -> str:
    """The word that is wrong or missing in a command `of` these options, and what it must be."""
    match event:
        case (
            _errors.UnrecognizedArgs(tokens=[word, *_])
            | _errors.MissingArgs(unrecognized_tokens=[word, *_])
        ):
            option = word.split("=")[0].replace("_", "-")
            if not option.startswith("--"):
                return f"{word}: not understood by {of}"
            return f"{option}: no option of {of}{suggestion(option, options)}"
        case _errors.MissingArgs(missing_arguments=[missing, *_]):
            argument = missing.arg
            positional = argument.lowered.metavar if argument.is_positional() else None
            return f"{positional or argument.display_name()}: missing, {of} needs it"
        case _errors.InvalidChoice(argument=argument, value=value, choices=choices):
            allowed = sorted({*choices} - {"None"}) if "None" in choices else choices
            return f"{argument.display_name()}: got {value}, allowed: {', '.join(allowed)}"
        case _errors.BadValue(argument=argument):
            number = argument.lowered.nargs
            needs = "a value" if number == 1 else f"{number} values"
        case _errors.InstantiationFailure(argument=argument) if argument is not None:
            form = str(argument.lowered.metavar)
            needs = IN_WORDS.get(form, form)
        case _:
            return " ".join(str(event).split())
    option = argument.display_name()
    return f"{option}: got {given(option, words)}, needs {needs}"


def options_of(command: Callable[..., Any]) -> list[str]:
    """The options as they are typed."""
    names: list[str] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if is_dataclass(parameter.annotation):
            names += [field.name for field in fields(parameter.annotation)]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            names.append(name)
    return ["--" + name.replace("_", "-") for name in names]


def suggestion(word: str, allowed: Collection[str]) -> str:
    """What may have been meant, as the end of a sentence; empty where nothing is like it."""
    longer = [each for each in allowed if each.startswith(word)]
    near = longer[:2] or difflib.get_close_matches(word, allowed, n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def given(option: str, words: Sequence[str]) -> str:
    """The values of an option as they were typed."""
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name.replace("_", "-") == option:
            after = words[place + 1 :]
            end = next((n for n, each in enumerate(after) if each.startswith("--")), len(after))
            return value or " ".join(after[:end]) or "nothing"
    return "nothing"
