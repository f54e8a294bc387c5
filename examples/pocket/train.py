"""Train the pocket model: a Qwen2 of a third of a million parameters that adds digits (see problems.py).

    python examples/pocket/train.py     # writes examples/pocket/model; 5 minutes of one core, offline
    python examples/pocket/train.py --output /tmp/model --steps 200      # a look at the machinery

Seeded: the same command gave the same weights, bit for bit, twice on one machine. The committed ones are from
`OMP_NUM_THREADS=1`; another number of threads or another processor rounds differently.
"""

import argparse
from pathlib import Path

import torch
from problems import Problem, held_out_problems, training_texts
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

END = "<|endoftext|>"
PAD = "<|pad|>"
IGNORED = -100  # label of positions without loss: prompt and padding


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text can be encoded and decoded without loss; digits always stand alone.

    Words are split as Qwen2 splits them, because AutoTokenizer does that for every model of type qwen2,
    whatever the saved tokenizer says: with a rule of our own, training and evaluation would disagree.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        min_frequency=2,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Two query heads of 64 share one key-value head: tiny, but of the shape of the real ones."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.05,  # at the default of 0.02 this width learns several times slower
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[Problem, str]]) -> list[dict[str, list[int]]]:
    """Token ids of prompt, completion and end of text; labels only for the last two.

    Prompt and completion are encoded apart, as at evaluation.
    """
    prompts = tokenizer([problem.prompt for problem, _ in pairs])["input_ids"]
    completions = tokenizer([completion + END for _, completion in pairs])["input_ids"]
    return [
        {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def collate(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest row: input_ids, attention_mask, labels, int64 [rows, longest]."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
    }


def train(output: Path, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Train from scratch on the training texts and save model and tokenizer in `output`."""
    set_seed(seed)
    pairs = training_texts(held_out=set(held_out_problems()))
    tokenizer = build_tokenizer([problem.prompt + completion for problem, completion in pairs])
    model = build_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens, {len(pairs):,} training texts")
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=0.01,
        adam_beta2=0.98,
        seed=seed,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encode(tokenizer, pairs),
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
    )
    trainer.train()
    model.config.use_cache = True  # the Trainer had switched it off
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the pocket model from scratch on the CPU.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "model", help="folder to write")
    parser.add_argument("--steps", type=int, default=1200, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="texts a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="weights and order of texts (default: %(default)s)")
    arguments = parser.parse_args()
    train(**vars(arguments))


if __name__ == "__main__":
    main()
