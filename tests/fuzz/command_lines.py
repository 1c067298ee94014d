"""Command lines: every option of every command, as its own parser knows them, with values that
nobody expects."""

import argparse
import random
import runpy
import sys
from functools import cache

from gpt.errors import Parser

from . import hostile
from .server import ROOT, Command


class _Found(Exception):
    """Carries a command's parser out of it."""


@cache
def options_of(tool: str) -> tuple[argparse.Action, ...]:
    """A command's options. The command is run until it would read its command line."""
    parse_known_args, argv, path = Parser.parse_known_args, sys.argv, list(sys.path)

    def stop(parser: Parser, *args: object) -> None:
        raise _Found(parser)

    Parser.parse_known_args = stop
    sys.argv = [tool, "--ds_config", "x"]
    try:
        module = runpy.run_path(str(ROOT / tool), run_name="options")
        module["main"]()
    except _Found as found:
        return tuple(_actions(found.args[0]))
    finally:
        Parser.parse_known_args = parse_known_args
        sys.argv, sys.path[:] = argv, path
    raise AssertionError(f"{tool} does not read its command line")


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    actions = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in dict.fromkeys(action.choices.values()):
                actions += _actions(subparser)
        elif action.option_strings and "--help" not in action.option_strings:
            actions.append(action)
    return actions


def damaged(rng: random.Random, command: Command, without: tuple[str, ...] = ()) -> Command:
    """A command with one or two of its words, or options beside them, hostile. without: options
    that stay as they are."""
    argv = list(command.argv)
    options = [
        action for action in options_of(command.tool) if action.option_strings[-1] not in without
    ]
    for _ in range(rng.choice((1, 1, 2))):
        how = rng.choice(("word", "option", "option", "option", "gone", "doubled"))
        at = rng.randrange(len(argv)) if argv else 0
        kept = bool(argv) and any(word in without for word in argv[max(0, at - 1) : at + 1])
        if how == "option" and options:
            argv += _option(rng, rng.choice(options))
        elif kept or not argv:
            continue
        elif how == "word":
            argv[at] = hostile.argument(rng)
        elif how == "gone":
            del argv[at]
        else:
            argv.insert(rng.randrange(len(argv)), argv[at])
    return Command(command.tool, argv, command.changes, command.environment)


def _option(rng: random.Random, action: argparse.Action) -> list[str]:
    name = rng.choice(action.option_strings)
    if action.nargs == 0 and rng.random() < 0.9:
        return [name]
    count = rng.choice((0, 1, 1, 2, 3)) if action.nargs in ("+", "*", "?") else 1
    values = [
        str(rng.choice(list(action.choices)))
        if action.choices and rng.random() < 0.3
        else hostile.argument(rng)
        for _ in range(count)
    ]
    if len(values) == 1 and rng.random() < 0.3:
        return [f"{name}={values[0]}"]
    return [name, *values]
