"""The start-up hook: every Python that has lm-power installed imports this module through lm_power.pth.

It must cost almost nothing and break nothing, so it imports only `sys` and waits. When lm-eval is imported, it lets
`lm_power.plugin` add our models and tasks, and removes itself. Entry points (pyproject.toml declares them) can replace
the first two hooks once every lm-eval that we support reads them.
"""

import sys

TYPE_CHECKING = False  # as in `typing`, which would be the slowest import of this file
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# lm-eval module -> the function of lm_power.plugin to call once that module is loaded.
_HOOKS = {
    "lm_eval.models": "add_models",
    "lm_eval.tasks.manager": "add_tasks",
    "lm_eval.evaluator": "add_checks",
    "lm_eval._cli.harness": "add_short_errors",
}


class _LmEvalFinder:
    """Finds the modules in `_HOOKS` as the other finders would, and runs our function once each is loaded."""

    def __init__(self) -> None:
        self.waiting = set(_HOOKS)

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return None for every other module, at the cost of one set lookup."""
        if name not in self.waiting:
            return None
        for finder in list(sys.meta_path):
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                try:
                    self._call_hook_after_loading(name, spec.loader)
                except Exception as error:
                    _warn(name, error)
                return spec
        return None

    def _call_hook_after_loading(self, name: str, loader: "Any") -> None:
        load = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            load(module)
            # Not earlier: a module may be looked up without being loaded, or fail and be tried again.
            self.waiting.discard(name)
            if not self.waiting and self in sys.meta_path:
                sys.meta_path.remove(self)
            _run_hook(name, module)

        loader.exec_module = exec_module


def _run_hook(name: str, module: "ModuleType") -> None:
    try:
        from lm_power import plugin

        getattr(plugin, _HOOKS[name])(module)
    except Exception as error:  # lm-eval must go on, whatever is wrong with us
        _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    import warnings

    warnings.warn(
        f"lm-power could not add itself to {name} ({type(error).__name__}: {error}); lm-eval continues without "
        "it. Reinstall lm-power, or try the lm-eval release it was tested with.",
        RuntimeWarning,
        stacklevel=2,
    )


def install() -> None:
    """Wait for lm-eval, or add our models and tasks now if it is already imported. Calling it twice does no harm."""
    if any(type(finder).__name__ == "_LmEvalFinder" for finder in sys.meta_path):
        return
    finder = _LmEvalFinder()
    for name in _HOOKS:
        if name in sys.modules:
            finder.waiting.discard(name)
            _run_hook(name, sys.modules[name])
    if finder.waiting:
        sys.meta_path.insert(0, finder)


install()
