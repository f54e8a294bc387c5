"""transformers' Trainer, with our batches, our loss and our model card."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from huggingface_hub import HfApi
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput

from lm_power.config import OptionError
from lm_power.distill.loss import compute_loss_by_parts, learnt_tokens
from lm_power.distill.options import CONFIG, DistillConfig
from lm_power.distill.parallel import together
from lm_power.distill.record import ADAPTER, RECORD, published_adapter
from lm_power.distill.windows import Batches, TrainingData, Window, collate, shuffled


class DistillTrainer(Trainer):
    """A Trainer whose losses are means over completion tokens, in training over each global batch.

    Args:
        config: options.
        data: what to learn from.
        card: makes the model card, when it is asked for.
        arguments: for `Trainer`: model, args, callbacks …
    """

    def __init__(self, config: DistillConfig, data: TrainingData, card: Callable[[], str], **arguments: Any) -> None:
        self._config, self._data, self._card = config, data, card
        model: Any = arguments["model"]
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        compute_loss_by_parts(base)
        super().__init__(
            train_dataset=data.train,
            eval_dataset=data.validation or None,
            data_collator=collate,
            compute_loss_func=_batch_loss,
            **arguments,
        )

    def get_train_dataloader(self) -> DataLoader[Window]:
        """This process's batches; the order of an epoch depends on its number and the seed alone."""

        def order() -> list[int]:
            return shuffled(len(self._data.train), self._config.seed, int(self.state.epoch or 0))

        return self._loader(self._data.train, self._config.batch_size, self._config.gradient_accumulation, order)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Window]:
        """This process's share of the held-out windows."""
        windows = self._data.validation
        return self._loader(windows, self.args.per_device_eval_batch_size, 1, lambda: range(len(windows)))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """As Trainer does, which keeps the labels from the model: ours computes the loss from them."""
        return super().compute_loss(model, {**inputs, "targets": inputs["labels"]}, *arguments, **options)

    def evaluation_loop(self, dataloader: DataLoader[Any], *arguments: Any, **options: Any) -> EvalLoopOutput:
        """`eval_loss`: −log p a token, mean over all completion tokens held out, whatever the batches."""
        metrics = {f"{options.get('metric_key_prefix', 'eval')}_loss": self.mean_loss(self._data.validation)}
        return EvalLoopOutput(np.empty(0), None, metrics, len(self._data.validation))

    def mean_loss(self, windows: Sequence[Window], beta: float = 1.0) -> float:
        """−log q per completion token, nats, mean over all tokens of the windows on all processes.

        Args:
            windows: the same on every process; each computes a share.
            beta: q ∝ p^beta, token by token; 1 for p itself.
        """
        model: Any = self.model_wrapped if self.is_deepspeed_enabled else self.model
        training = model.training
        model.eval()
        nats, tokens = 0.0, 0
        # Without a DataLoader, which would draw from the random stream of the training.
        for places in self._batches(windows, self.args.per_device_eval_batch_size, 1, lambda: range(len(windows))):
            inputs = self._prepare_inputs(collate([windows[place] for place in places]))
            targets = inputs.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                nats += model(**inputs, targets=targets, beta=beta).loss.item()
            tokens += learnt_tokens(targets)
        model.train(training)
        shares = gather_object([(nats, tokens)])
        return math.fsum(nats for nats, _ in shares) / sum(tokens for _, tokens in shares)

    def publish(self) -> None:
        """Upload the result, without checkpoints, and without the files that name folders of this machine."""
        if self.is_world_process_zero() and self.hub_model_id is not None:  # Trainer's name for push_to_hub
            self.create_model_card()
            folder, hub = Path(str(self.args.output_dir)), HfApi()
            to = {"repo_id": self.hub_model_id, "token": self.args.hub_token}
            if (folder / ADAPTER).exists():  # not with --full
                hub.upload_file(
                    path_or_fileobj=published_adapter(folder),
                    path_in_repo=ADAPTER,
                    commit_message="Add the settings of an adapter by lm-power",
                    **to,
                )
            hub.upload_folder(
                folder_path=str(folder),
                commit_message="Add the result of a distillation by lm-power",
                ignore_patterns=["_*", "checkpoint-*", TRAINING_ARGS_NAME, RECORD, CONFIG, ADAPTER],
                **to,
            )

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """Trainer's, unless the run had stopped early when it was cut off: Trainer would ask only after a step."""
        if not self.control.should_training_stop:
            super()._run_epoch(*arguments, **options)  # type: ignore[no-untyped-call]

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Trainer's, in which a full disk on one process ends all.

        But for sharded weights: their processes wait for one another as they write, and only the launcher can end them.
        """
        save = functools.partial(super()._save_checkpoint, *arguments, **options)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            save()
        else:
            together(save)

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Our own card, also when Trainer uploads the folder."""
        if self.is_world_process_zero():
            (Path(str(self.args.output_dir)) / "README.md").write_text(self._card(), encoding="utf-8")

    def _loader(
        self, windows: Sequence[Window], batch_size: int, accumulation: int, order: Callable[[], Sequence[int]]
    ) -> DataLoader[Window]:
        # Not accelerate's loader: it would repeat windows to fill the last batches of an epoch, and forgets the
        # epoch's number where several processes resume in the middle of one.
        batches = self._batches(windows, batch_size, accumulation, order)
        return DataLoader(windows, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]

    def _batches(
        self, windows: Sequence[Window], batch_size: int, accumulation: int, order: Callable[[], Sequence[int]]
    ) -> Batches:
        return Batches(
            [len(window) for window in windows], batch_size, accumulation,
            self.args.world_size, self.args.process_index, order,
        )  # fmt: skip


def _batch_loss(
    outputs: CausalLMOutputWithPast, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """This batch's share of the global batch's loss: its −Σ log p over the completion tokens of all batches.

    Trainer counts those tokens over all processes, and multiplies by their number what DDP then averages.
    """
    assert outputs.loss is not None
    return outputs.loss / num_items_in_batch


class AtStart(TrainerCallback):
    """Does something when the model is in place on all devices, before the first step."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work

    def on_train_begin(self, *arguments: Any, **others: Any) -> None:
        """Do it."""
        self.work()


class EarlyStopping(EarlyStoppingCallback):
    """transformers', which also knows at the start of a resumed run that it had stopped."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> TrainerControl:
        """Stop at once if the run's last checkpoint was the one at which it stopped."""
        super().on_train_begin(args, state, control, **others)  # type: ignore[no-untyped-call]
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience
        return control


class LossWatch(TrainerCallback):
    """Logs the last step too, and ends a run whose loss is not a number: nothing can be learnt after that."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> TrainerControl:
        """Ask for a log entry at the last step."""
        control.should_log |= state.global_step >= state.max_steps
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Raise `OptionError` if the loss is not finite."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise OptionError(
                f"learning_rate={args.learning_rate:g}: the loss is {loss} at step {state.global_step}; start "
                "another run at a lower one, or check the data"
            )
