"""Two processes: what fails in one is raised in the other, which would wait for it otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from distill_runs import free_port, options

BEGIN = """
import sys, time
from accelerate import PartialState
state = PartialState(cpu=True)

def report(work):
    # Whoever has failed lives on for a while: a process that ends would end the other's wait by the lost connection.
    try:
        print("returned", work(), flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        time.sleep(5)

def full():
    raise OSError(28, "No space left on device")
"""


def both(code: str, *arguments: str) -> list[str]:
    """What two processes of a run print, by rank."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + textwrap.dedent(code), *arguments],
            env={**os.environ, **common, **quiet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], said
    return [out for out, _ in said]


def test_any_error_of_the_main_process_reaches_the_other() -> None:
    """Guards against a process that waits for a result that never comes: only users' errors were handed on."""
    main, other = both("""
        from lm_power.distill.parallel import on_main
        from lm_power.config import OptionError
        report(lambda: on_main(lambda: 3))
        report(lambda: on_main(full))
        def wrong():
            raise OptionError("alpha=0")
        report(lambda: on_main(wrong))
    """)
    assert main == "returned 3\nOSError [Errno 28] No space left on device\nOptionError alpha=0\n"
    failed = "OtherProcessError process 0 failed: OSError: [Errno 28] No space left on device"
    assert other == f"returned 3\n{failed}\nOptionError alpha=0\n"


def test_an_error_of_any_process_reaches_the_other() -> None:
    """Guards work that every process does: with a full disk on the second, the first must not go on to wait."""
    main, other = both("""
        from lm_power.distill.parallel import together
        report(lambda: together(lambda: state.process_index))
        report(lambda: together(full if state.process_index == 1 else lambda: 0))
    """)
    failed = "process 1 failed: OSError: [Errno 28] No space left on device"
    assert main == f"returned 0\nOtherProcessError {failed}\n"
    assert other == "returned 1\nOSError [Errno 28] No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["_finish", "save_model", "checkpoint"])
def test_a_full_disk_ends_a_whole_distillation(tiny: str, store: str, tmp_path: Path, stage: str) -> None:
    """Guards the stages that only the main process writes in: checkpoints, the adapter, and what lies beside it."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(options(tiny, store, tmp_path / "out", epochs=1, gradient_accumulation=2)))
    main, other = both(
        """
        import lm_power.distill.run as run
        from lm_power.distill.arguments import parse
        from transformers import Trainer
        def on_rank_0(*arguments, **options):
            if state.process_index == 0:
                full()
        stage = sys.argv[2]
        if stage == "_finish":
            run._finish = on_rank_0
        elif stage == "save_model":
            save = Trainer.save_model
            def last(trainer, output_dir=None, **options):
                if output_dir is None:  # no checkpoint
                    on_rank_0()
                save(trainer, output_dir, **options)
            run.DistillTrainer.save_model = last
        else:
            Trainer._save_optimizer_and_scheduler = on_rank_0
        report(lambda: run.distill(parse(["--config", sys.argv[1]]).config))
        """,
        str(config),
        stage,
    )
    assert "OSError [Errno 28] No space left on device" in main
    assert "OtherProcessError process 0 failed: OSError: [Errno 28] No space left on device" in other
