"""The loop where the models are served: a teacher's store, a student that is trained here, and its adapter served."""

from __future__ import annotations

import pytest
from distill_runs import losses, run
from harness.tiny_lm import PROMPTS, write_task
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from remote.fake_server import law_of_model, of_model

from lm_power import PowerSampler
from lm_power.harness.power_api import PowerAPI
from lm_power.store import read_store


def test_from_a_served_teacher_to_a_served_student(tiny, tmp_path) -> None:
    """Guards the store of `power-api` as teacher data, and what is said of weights that nobody knows.

    An adapter on a server has its base's tokenizer, EOS and window, and is recorded with its base.
    """
    server, store, output = of_model(tiny), tmp_path / "store", tmp_path / "student"
    with server.running() as url:
        teacher = PowerAPI(url, completions=str(store), num_concurrent=4, top_logprobs=8, mcmc_steps=2, block_size=4)
        folder = write_task(tmp_path / "task", [*PROMPTS, "is it so?", "ab", "cd"], repeats=2)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        simple_evaluate(model=teacher, tasks=["tiny_task"], task_manager=manager, bootstrap_iters=0)
        teacher.sampler.host.close()

        record = run(tiny, str(store), output, epochs=4)
        told = record["teacher"]
        assert (told["model"], told["start"]) == (f"tiny (root {tiny})", "untold")
        lines = {tuple(line["token_ids"]): line for line in read_store(store) if line["repeat"] == 0}
        assert record["data"]["learnt_tokens"] == sum(map(len, lines)) and told["config"]["top_logprobs"] == 8
        first, *_, last = losses(output)
        assert last < first - 0.1
        assert "the data do not say which weights the teacher had" in (output / "README.md").read_text()

        student = law_of_model(tiny, str(output))
        server.adapters["student"] = str(output), student
        sampler = PowerSampler.from_server(url, "student", top_logprobs=8)
        assert str(sampler.host.card) == f"student (root {output}, on tiny (root {tiny}))"
        assert sampler.eos_ids == (0,) and sampler.host.max_positions == 96
        ((served,),) = sampler.generate(["ab"], method="standard", max_new_tokens=8, seed=2)
        sampler.host.close()
    prompt, tokens = sampler.encode("ab"), served.token_ids
    laws = [
        [law((*prompt, *tokens[:t]))[token] for t, token in enumerate(tokens)] for law in (student, law_of_model(tiny))
    ]
    assert served.log_probs == pytest.approx(laws[0]) and served.log_probs != pytest.approx(laws[1], abs=0.01)
