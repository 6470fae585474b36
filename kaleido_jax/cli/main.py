"""`kaleido COMMAND ...`: finds the command, runs it, and turns every error into one sentence and an exit code."""

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from kaleido_jax.errors import ExitCode, KaleidoError, StorageError, UsageError, nearest_name, printable

# One line registers a command: its module in this folder has add_arguments(parser) and run(args) -> exit code, and
# imports what is heavy only inside run.
COMMANDS = {
    "generate": "make a video from reference pictures and a prompt",
    "train": "train a model, or go on with a run",
    "data": "encode a data set before training",
    "plan": "say what a training step takes of chips that need not be there",
    "pairs": "make, judge and select preference pairs",
    "describe": "say what a target changes of a reference, as a prompt",
    "curate": "make training data of a folder of videos",
    "layout": "draw the token layout, positions and attention mask of a method",
    "port": "write weights as another project's, or another project's as ours",
    "inspect": "say what a file or folder of weights is",
    "evaluate": "score a folder of videos as the papers do",
    "testset": "make references and prompts in the form of a paper's test set",
    "report": "show scores, plots and videos of one or several runs on a page",
    "study": "let people judge videos without knowing whose they are",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence, with the nearest option for a misspelled one."""

    def error(self, message: str):
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}. See: {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = super().parse_known_args(args, namespace)
        if hasattr(namespace, "overrides"):  # argparse drops words of a nargs="*" argument that stand after an option
            namespace.overrides += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        if rest:
            wrong = rest[0].split("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            nearest = nearest_name(wrong, known) if wrong.startswith("-") else None
            hint = f"; did you mean {nearest}?" if nearest else "."
            what = "option" if wrong.startswith("-") else "argument"
            raise UsageError(f"There is no {what} {printable(wrong)!r}{hint} See: {self.prog} --help")
        return namespace, rest


def parser_of(command: str | None) -> Parser:
    """The parser of one command, or of the program (without a command)."""
    if command is not None:
        parser = Parser(prog=f"kaleido {command}", description=f"{COMMANDS[command].capitalize()}.", allow_abbrev=False)
        module(command).add_arguments(parser)
        return parser
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="kaleido",
        description="Subject-to-video generation: reference pictures and a prompt in, a video out.",
        epilog="commands:\n"
        + "".join(f"  {name:{width}}  {what}\n" for name, what in COMMANDS.items())
        + "\n`kaleido COMMAND --help` says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of the commands below, with its options")
    return parser


def module(command: str):
    return importlib.import_module(f"kaleido_jax.cli.{command}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code. KALEIDO_TRACEBACK=1 shows where an error came from."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(_run(arguments))
    except SystemExit as exit:  # --help, or SIGTERM in a command that has nothing to save
        if exit.code == ExitCode.TERMINATED:
            return _failed("stopped by SIGTERM.", ExitCode.TERMINATED)
        return exit.code if isinstance(exit.code, int) else int(ExitCode.DONE)
    except KeyboardInterrupt:
        return _failed("stopped by Ctrl-C.", ExitCode.INTERRUPTED)
    except BaseException as error:
        if os.environ.get("KALEIDO_TRACEBACK"):
            raise
        return _failed(*_explained(error))


def program() -> NoReturn:
    """The `kaleido` program: main, and the end of the process.

    Interrupted, it ends without tearing the interpreter down: threads of the compiler that are still at work would
    find their surroundings gone and crash. Nor does it wait for processes that are gone.
    """
    code = main()
    if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED, ExitCode.PEER_LOST):
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-"):
        command = arguments[0]
        if command not in COMMANDS:
            nearest = nearest_name(command, COMMANDS)
            hint = f"; did you mean {nearest}?" if nearest else "."
            raise UsageError(f"There is no command {printable(command)!r}{hint} Known: {', '.join(COMMANDS)}.")
        return module(command).run(parser_of(command).parse_args(arguments[1:]))
    parser = parser_of(None)
    if parser.parse_args(arguments).version:
        from importlib.metadata import version

        print(f"kaleido_jax {version('kaleido_jax')}")
        return ExitCode.DONE
    parser.print_help()
    return ExitCode.DONE if arguments else ExitCode.USAGE


def _explained(error: BaseException) -> tuple[str, ExitCode]:
    """The sentence and the exit code for an error."""
    if isinstance(error, KaleidoError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        return "the program that reads this output has gone.", ExitCode.STORAGE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
        return str(StorageError(f"Cannot write {error.filename or 'a file'}: {error.strerror}.")), ExitCode.STORAGE
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return "there is not enough memory for this; ask for a smaller size or fewer frames.", ExitCode.INTERNAL
    sentence = f"internal error, which is a defect of kaleido_jax ({type(error).__name__}: {error})"
    return f"{sentence}; KALEIDO_TRACEBACK=1 shows where.", ExitCode.INTERNAL


def _failed(message: str, code: ExitCode) -> int:
    sentence = printable(message, 1000)
    print(f"kaleido: {sentence if sentence.endswith(('.', '--help')) else sentence + '.'}", file=sys.stderr, flush=True)
    return int(code)
