"""Build step: ships lm_power.pth, the one line that loads `lm_power._autoload` when Python starts.

A wheel takes what build_py leaves in build_lib. An editable wheel takes what lies in the `install` command's
install_lib instead. Either way the file is listed in RECORD, so `pip uninstall` removes it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py as _build_py

PTH_NAME = "lm_power.pth"
# One line, since `site` reads .pth files line by line. It can outlive a package that was deleted by hand or
# that no longer imports: Python then starts as if lm-power were not installed.
PTH_LINE = r'import sys; exec("try:\n import lm_power._autoload\nexcept Exception:\n pass")' + "\n"


class build_py(_build_py):
    """setuptools' build_py, plus the .pth file at the root of site-packages."""

    def run(self) -> None:
        """Build the packages and write the .pth file beside them."""
        if not self.editable_mode:
            # setuptools keeps what earlier builds left there, so that a deleted task would still be installed.
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        self._pth_path().parent.mkdir(parents=True, exist_ok=True)
        self._pth_path().write_text(PTH_LINE, encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return every file that `run` writes."""
        return [*super().get_outputs(include_bytecode), str(self._pth_path())]

    def _pth_path(self) -> Path:
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        return Path(root) / PTH_NAME
