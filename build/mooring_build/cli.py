"""``mooring build``."""

from __future__ import annotations

import argparse


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mooring build`` to the command line."""
    from mooring._commands import add_folder_option
    from mooring._toml_files import add_override_option

    parser = subparsers.add_parser(
        "build",
        help="fine-tune, export, verify and publish a recipe",
        description="Fine-tune, export, verify and publish recipes; only what is out of date is done. Exit "
        "code: 0 published, 1 not good enough or can't be written, 2 the input was wrong.",
    )
    parser.add_argument(
        "recipes", nargs="+", metavar="RECIPE", help="path of a TOML file, or a shipped recipe's name"
    )
    add_override_option(
        parser,
        "change one key of the recipe, e.g. data.train=my.csv or training.epochs=3; no VALUE takes it "
        "away; may be repeated",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="publish this fine-tuned checkpoint, a folder or ORG/NAME on the hub: sets base.checkpoint and "
        "skips training",
    )
    parser.add_argument(
        "--search",
        type=_trials,
        default=0,
        metavar="N",
        help="try N sets of hyper-parameters first and build the best; trials of an earlier search count",
    )
    add_folder_option(parser, "--repository", "model_repository", "where releases are published")
    add_folder_option(
        parser, "--artifacts", "artifacts", "what is made on the way, and need not be made again"
    )
    parser.set_defaults(run=run)


def _trials(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of trials above 0")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Build every recipe that was named; all are validated before the first is built."""
    from mooring import ConfigError
    from mooring_build.building import build
    from mooring_build.recipe import COMPOSED_TASKS, load_recipe

    if args.checkpoint is not None and len(args.recipes) > 1:
        raise ConfigError(f"--checkpoint fits one recipe, not {' and '.join(args.recipes)}")
    recipes = [load_recipe(name, args.overrides, fine_tuned=args.checkpoint) for name in args.recipes]
    joined = [recipe.name for recipe in recipes if recipe.task in COMPOSED_TASKS]
    if args.search and joined:
        raise ConfigError(f"--search: {' and '.join(joined)} train nothing; search for their parts")
    for recipe in recipes:
        print(f"{recipe.name}: {recipe.task}", flush=True)
        try:
            build(
                recipe,
                repository=args.repository,
                artifacts=args.artifacts,
                search_trials=args.search,
                say=lambda line: print(f"  {line}", flush=True),
            )
        except KeyboardInterrupt:
            print("mooring: stopped; the same command goes on from the last finished step or epoch")
            raise
    return 0
