"""What this project adds to tox: environments that share a folder, and tests that one `tox run` need not repeat.

Installing torch takes longer than most tests. tox makes a folder anew whenever it finds another environment's name in
it; the runner ``shared`` does not, so environments with the same dependencies may have one folder. They are for `tox
run`, which runs one after another, and not for `tox run-parallel`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tox.config.loader.memory import MemoryLoader
from tox.execute import Outcome
from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister

OWN = "test_pairs"
"""The tests of a pair that no other environment runs: its suites are part of the whole test suite too."""


class SharedInfo(Info):
    """What tox remembers of a folder, but for the name of the environment."""

    def compare(
        self, value: Any, section: str, sub_section: str | None = None
    ) -> AbstractContextManager[tuple[bool, Any]]:
        if section == ToxEnv.__name__:
            value = {**value, "name": "shared"}
        return super().compare(value, section, sub_section)


class SharedRunner(VirtualEnvRunner):
    """A virtual environment whose folder others use as well, made and filled once by a `tox run`: that of ``py311`` or
    the like, whichever Python tox itself runs on."""

    ready: set[Path] = set()  # noqa: RUF012  # of all environments of this process
    tested: set[Path] = set()  # noqa: RUF012

    @staticmethod
    def id() -> str:
        return "shared"

    def register_config(self) -> None:
        if not self.conf.name.startswith("py"):
            name = "py{}{}".format(*sys.version_info)
            self.conf.loaders.insert(0, MemoryLoader(env_dir=self.core.get("work_dir", Path) / name))
        super().register_config()

    @property
    def cache(self) -> Info:
        return SharedInfo(self.env_dir)

    def _clean(self, transitive: bool = False) -> None:
        if transitive and self.env_dir in self.ready:  # asked for by --recreate, and done already
            return
        self.ready.discard(self.env_dir)
        super()._clean(transitive)

    def _setup_pkg(self) -> None:
        if self.env_dir not in self.ready:
            super()._setup_pkg()
            self.ready.add(self.env_dir)


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(SharedRunner)


@impl
def tox_before_run_commands(tox_env: ToxEnv) -> None:
    """What an environment of the whole test suite has just run, in the same folder, is not run again."""
    if isinstance(tox_env, SharedRunner) and tox_env.env_dir in tox_env.tested:
        tox_env.conf["set_env"].update({"PYTEST_ADDOPTS": f"-k {OWN}"})


@impl
def tox_after_run_commands(tox_env: ToxEnv, exit_code: int, outcomes: Sequence[Outcome]) -> None:
    if isinstance(tox_env, SharedRunner) and exit_code == 0 and tox_env.conf.name.startswith("py"):
        tox_env.tested.add(tox_env.env_dir)
