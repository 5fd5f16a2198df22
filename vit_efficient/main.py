"""The entry point: reads the command line, picks the job, runs it.

`main` is what `python -m vit_efficient.main` calls: `read` turns the flags into a `Command`, whose
job, a function `job(config, workdir, *, own flags)`, does the rest; training begins in
`jobs/train.py`. Flags are split in `settings/flags.py`, recipes found in `settings/words.py`.

What is wrong with a command line or a config is found before a device is touched or a file is
written; absl's own flags, which let much pass (see settings/flags.py), are not used.
"""
from collections.abc import Callable
import importlib
import linecache
import logging
from pathlib import Path
import re
import sys
import textwrap
import traceback
from typing import Any, NamedTuple

from absl import flags as absl_flags, logging as absl_logging
from ml_collections import ConfigDict

from vit_efficient import registry
from vit_efficient.settings.flags import refuse_unknown, split, table, typed
from vit_efficient.settings.schema import find_job, flat, paper_of
from vit_efficient.settings.store import check_same_run, load, load_stored
from vit_efficient.settings.values import Count, Whole, allowed, closest, keywords
from vit_efficient.settings.words import find

HELP = """\
Trains, evaluates and measures efficient vision transformers.

  python -m vit_efficient.main --config=configs/asvit.py:digits
  python -m vit_efficient.main --workdir=runs/asvit-digits --job=evaluate

  --config=FILE[:WORD,KEY=VALUE]  a recipe (its words stand at its top); FILE may be a name: asvit
  --config.GROUP.KEY=VALUE        changes a key, e.g. --config.optim.lr=1e-3 --config.epochs=2
  --workdir=DIR                   checkpoints, config.json, metrics; default runs/NAME-WORDS.
                                  Without --config: go on with the run stored there
  --job=JOB                       what is done, by default train; --job=JOB --help lists its flags
  --coordinator=HOST:PORT --processes=N --process=I
                                  one of N processes of a run on many hosts, I from 0"""

# The flags of every command; a job adds its own, a config those of its keys.
FLAGS = {"config": str, "workdir": str, "job": str,
         "coordinator": str, "processes": Count, "process": Whole}


class Command(NamedTuple):
    """What a command line asks for: `options` are for the job, `hosts` for `distributed.start`."""
    job: Callable
    config: ConfigDict
    workdir: Path
    options: dict[str, Any]
    hosts: tuple


def main(argv: list[str] | None = None) -> int:
    """Runs one command line, by default the process's own; returns the exit code: 2 if it is wrong.

    An error that this package raises by ValueError or FileNotFoundError is a message to the user
    and printed as `error: ...`; every other one keeps its traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    file = ""
    try:
        # Nothing before `command.job` touches a device, so that a wrong word costs a second.
        if "--help" in argv:
            print(usage(split([word for word in argv if word != "--help"], FLAGS)))
            return 0
        command = read(argv)
        file = f" ({command.config.recipe})"
        start_logging()
        distributed = importlib.import_module("vit_efficient.engine.distributed")
        distributed.start(*command.hosts)
        with distributed.fail_fast(lambda error: report(error, file)):
            command.job(command.config, command.workdir, **command.options)
    except (ValueError, FileNotFoundError) as error:
        if not meant_for_the_user(error):
            raise
        return report(error, file)
    return 0


def report(error: BaseException, file: str) -> int:
    """Tells the user what went wrong, in a line or with a traceback; returns the exit code."""
    if meant_for_the_user(error):
        print(f"error: {error}{file}", file=sys.stderr)
        return 2
    traceback.print_exception(error)
    return 1


def read(argv: list[str]) -> Command:
    """The command that `argv` spells; ValueError or FileNotFoundError for a wrong one."""
    found = split(argv, FLAGS)
    common = {name: typed(name, found[name], kind) for name, kind in FLAGS.items() if name in found}
    overrides = {name.removeprefix("config."): typed(name, text, str)
                 for name, text in found.items() if name.startswith("config.")}
    name = common.get("job", "train")
    if not {"config", "workdir"} & set(common):
        refuse_unknown([f for f in found if closest(f, FLAGS) in ("config", "workdir")], FLAGS)
        raise ValueError("--config=FILE is needed, as in --config=configs/asvit.py:digits "
                         "(--help lists the flags)")
    config, workdir = open_run(common.get("config"), common.get("workdir"), overrides)
    job = find_job(name, paper_of(config))
    own = keywords(job)
    refuse_unknown(found, [*FLAGS, *own, *(f"config.{key}" for key in flat(config))])
    options = {**config.get(name, {}), **{flag: typed(flag, found[flag], p.annotation)
                                          for flag, p in own.items() if flag in found}}
    for flag, parameter in own.items():
        if parameter.default is parameter.empty and flag not in options:
            raise ValueError(f"--job={name} needs --{flag}: {allowed(parameter.annotation)}")
    hosts = tuple(common.get(flag) for flag in ("coordinator", "processes", "process"))
    if any(value is not None for value in hosts) and (None in hosts or hosts[2] >= hosts[1]):
        raise ValueError("--coordinator, --processes and --process belong together, and processes "
                         "count from 0: --coordinator=HOST:PORT --processes=2 --process=0 and 1")
    return Command(job=job, config=config, workdir=workdir, options=options, hosts=hosts)


def open_run(recipe: str | None, workdir: str | None,
             overrides: dict[str, str]) -> tuple[ConfigDict, Path]:
    """The config and the folder of a run; without a recipe the config is the one stored there."""
    if workdir and "://" in workdir:
        raise ValueError(f"--workdir={workdir}: must be a folder of this machine; mount the bucket "
                         "and name its folder")
    folder = Path(workdir).expanduser() if workdir else None
    config = load(recipe, overrides) if recipe else load_stored(folder, overrides)
    name = re.sub(r"[^\w.]+", "-", config.recipe, flags=re.ASCII)[:100].strip("-.")
    folder = folder or Path("runs", name)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir={folder}: is a file, must be a folder")
    check_same_run(config, folder)
    return config, folder


def usage(found: dict[str, str | None]) -> str:
    """The help text: the jobs, with a config its paper's own among them, or the flags of one."""
    paper = find(found["config"])[0].stem if found.get("config") else ""
    if name := found.get("job"):
        own = table(keywords(find_job(name, paper))) or ["  none"]
        return "\n".join([HELP, "", f"Flags of --job={name}:", *own])
    lines = [f"  {name:12}{_first_sentence(registry.load_job(name, paper))}"
             for name in registry.jobs(paper)]
    whose = f"Jobs of {found['config']}:" if paper else "Jobs (with --config also its paper's own):"
    return "\n".join([HELP, "", whose, *lines])


def _first_sentence(job: Callable) -> str:
    """What a job does, from its docstring, cut to a line."""
    text = " ".join((job.__doc__ or "").split())
    return textwrap.shorten(re.split(r"(?<=[.:;]) ", text)[0].rstrip(":;"), 86)


def meant_for_the_user(error: BaseException) -> bool:
    """True where a `raise` of this package made the error; otherwise a traceback tells more."""
    if not isinstance(error, (ValueError, FileNotFoundError)):
        return False
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    file, module = frame.f_code.co_filename, frame.f_globals.get("__name__", "")
    ours = module.startswith("vit_efficient") or file == __file__
    return ours and linecache.getline(file, line).strip().startswith("raise ")


def start_logging() -> None:
    """This package from INFO on and all others from WARNING on, to stderr in one format."""
    absl_flags.FLAGS.mark_as_parsed()                   # Grain's worker processes read absl's flags
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("vit_efficient").setLevel(logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
