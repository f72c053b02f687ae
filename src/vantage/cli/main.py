"""What train.py and eval.py call: compose, check, make the run directory, run, and speak in sentences."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from vantage.cli import environment, help, logs
from vantage.cli.errors import SHOW_TRACEBACK, ConfigError, as_sentence, one_line

Runner = Callable[[DictConfig, Path], dict[str, float]]
REFUSED, FAILED, INTERRUPTED = 2, 1, 130

logger = logging.getLogger(__name__)


def main(command: str, config_dir: Path, runner: Runner | None = None) -> None:
    """Runs `command` ("train" or "eval") and exits: 0 done, 1 failed, 2 refused, 130 interrupted."""
    environment.prepare()
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print(help.text(command, config_dir))
        sys.exit(0)
    try:
        code = Command(command, Path(config_dir).resolve(), runner or default_runner(command)).run()
    except KeyboardInterrupt:
        code = say("interrupted", INTERRUPTED)
    sys.exit(code)


def default_runner(command: str) -> Runner:
    """The function behind a command; it imports torch, so only when it is about to run."""

    def run(cfg: DictConfig, run_dir: Path) -> dict[str, float]:
        if command == "eval":
            from vantage.cli.evaluate import run_evaluation as function
        else:
            from vantage.cli.train import run_training as function
        return function(cfg, run_dir)

    return run


class Command:
    """One launch of train.py or eval.py."""

    def __init__(self, command: str, config_dir: Path, runner: Runner):
        self.command = command
        self.config_dir = config_dir
        self.runner = runner
        self.code = 0

    def run(self) -> int:
        import hydra
        from hydra.main import get_args_parser

        from vantage.cli import compose, sweep
        from vantage.cli.sources import quote_paths

        compose.register_resolvers()
        sweep.current = None
        logging.getLogger("hydra").addHandler(logging.NullHandler())  # what it reports, we say in our own sentence
        parser = get_args_parser()
        parser.error = lambda message: sys.exit(say(f"error: {message}; --help shows how to use this command", REFUSED))
        sys.argv[1:] = quote_paths(sys.argv[1:])
        arguments = parser.parse_args()
        try:
            if self.command == "eval" and not arguments.multirun and compose.names_a_run(arguments.overrides):
                return self.run_on_a_run(arguments)
            hydra.main(version_base="1.3", config_path=str(self.config_dir), config_name=self.command)(self.run_job)()
            return sweep.current.finish() if sweep.current else self.code
        except KeyboardInterrupt:
            if sweep.current:
                sweep.current.finish()
            raise
        except ConfigError as error:
            return self.refuse(error)
        except compose.COMPOSITION_ERRORS as error:
            refusal = compose.explain(error, self.config_dir, self.command, arguments.overrides)
            refusal.__cause__ = error
            return self.refuse(refusal)

    def run_job(self, cfg: DictConfig) -> None:
        """Hydra's task function; errors are told here, because Hydra prints lines of its own around them."""
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig

        from vantage.cli.sources import Sources

        hydra_config = HydraConfig.get()
        # as typed: an override such as data.seed=${seed} is not to be resolved here
        overrides = OmegaConf.to_container(hydra_config.overrides, resolve=False)
        try:
            loader = GlobalHydra.instance().config_loader()
            typed = overrides["task"] + overrides["hydra"]
            sources = Sources.of_composition(loader, hydra_config, hydra_config.job.config_name, typed)
            self.code = self.check_and_execute(cfg, sources, overrides["task"])
        except ConfigError as error:
            self.code = self.refuse(error)

    def run_on_a_run(self, arguments) -> int:
        """eval.py run=... or checkpoint=...: the config is the run's, not a new composition."""
        from vantage.cli import compose

        with compose.config_loader(self.config_dir) as loader:
            cfg, sources = compose.compose_from_run(loader, self.config_dir, arguments.overrides)
        if arguments.cfg:
            print(OmegaConf.to_yaml(cfg, resolve=arguments.resolve), end="")
            return 0
        return self.check_and_execute(cfg, sources, arguments.overrides)

    def check_and_execute(self, cfg: DictConfig, sources, overrides: Sequence[str]) -> int:
        from vantage.cli import run_dir
        from vantage.cli.check import check
        from vantage.cli.compose import refuse_contradiction

        if self.command == "eval":
            refuse_contradiction(cfg)
        check(cfg, sources, self.command)
        directory = run_dir.open_run_dir(cfg, self.command)
        launched = run_dir.describe_launch(cfg, overrides, self.config_dir)
        with open_dict(cfg):
            cfg.run_dir = str(directory)
            cfg.paths.run_dir = str(directory)
            for name in ("data_dir", "log_dir"):
                cfg.paths[name] = os.path.abspath(cfg.paths[name])
            root = OmegaConf.to_container(cfg.data, resolve=False).get("root")
            if isinstance(root, str) and "${" not in root:
                cfg.data.root = os.path.abspath(root)  # an evaluation may start from another folder
            cfg.launch = launched
        if environment.rank() == 0:
            run_dir.write_config(cfg, directory)
        return self.execute(cfg, directory)

    def execute(self, cfg: DictConfig, directory: Path) -> int:
        with logs.run_log(directory, environment.rank()) as log:
            try:
                self.runner(cfg, directory)
                return 0
            except KeyboardInterrupt:
                return self.interrupted(directory)
            except SystemExit as error:
                if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
                    return self.interrupted(directory)
                return error.code if isinstance(error.code, int) else FAILED
            except Exception as error:
                return self.failed(error, directory, log)

    def interrupted(self, directory: Path) -> int:
        logger.info("interrupted; what was written is in %s", directory)
        return INTERRUPTED

    def failed(self, error: Exception, directory: Path, log: logging.Handler) -> int:
        """One sentence for what the user can act on; a defect of ours shows its traceback, which run.log always has."""
        sentence = as_sentence(error)
        told = sentence or f"{type(error).__name__}: {one_line(error)}"
        record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, f"error: {told}", None, None)
        record.exc_info = (type(error), error, error.__traceback__)
        log.handle(record)
        if sentence is None or os.environ.get(SHOW_TRACEBACK) == "1":
            traceback.print_exception(error)
        return say(f"error: {told} ({directory / 'run.log'} has the details)", FAILED)

    def refuse(self, error: ConfigError) -> int:
        from vantage.cli import sweep

        if sweep.current:
            sweep.current.discard()
        if os.environ.get(SHOW_TRACEBACK) == "1":
            traceback.print_exception(error)
        return say(f"error: {one_line(error)}", REFUSED)


def say(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code
