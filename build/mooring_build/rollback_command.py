"""``mooring rollback``: an earlier version answers again."""

from __future__ import annotations

import argparse

_DESCRIPTION = """\
Let an earlier version of a released pipeline answer again, with the configs that it was published with.
Versions stay on disk, so that the same command leads back. A server takes it up when it starts, polls or
loads the model."""


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mooring rollback`` to the command line."""
    from mooring._commands import add_folder_option

    parser = subparsers.add_parser(
        "rollback", help="let an earlier version answer again", description=_DESCRIPTION
    )
    parser.add_argument("model", metavar="MODEL", help="name of a released pipeline, such as ner")
    parser.add_argument(
        "version",
        nargs="?",
        type=int,
        metavar="VERSION",
        help="one that is in the repository (default: the highest below the one that answers)",
    )
    add_folder_option(parser, "--repository", "model_repository", "where the release was published")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Switch over, and say what follows from it."""
    from mooring import ConfigError
    from mooring_build.publish import roll_back
    from mooring_build.repository import decided_with_others, read_manifest, released_version

    if not args.repository.is_dir():
        raise ConfigError(f"there is no model repository at {args.repository}")
    version = roll_back(args.repository, args.model, args.version)
    print(f"{args.model}: version {version} answers in {args.repository}, once a server has loaded it")
    for name in decided_with_others(args.repository, args.model, version):
        print(f"{name} found its thresholds with another version of {args.model}: build it again")
    manifest = read_manifest(args.repository, args.model, version)
    for part in manifest.get("composed_of", {}).values() if manifest.get("metrics") else ():
        answers = released_version(args.repository, part["model"])
        if answers != part["version"]:
            print(
                f"{args.model} version {version} found its thresholds with version {part['version']} of "
                f"{part['model']}, of which version {answers} answers"
            )
    return 0
