"""What to do when memory runs out while a run is under way: go on with half the rows."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Messages that accelerate does not know: of libraries with their own allocators, and of CUDA outside torch's allocator.
_SAYINGS = ("bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def retry_with_fewer_rows(attempt: Callable[[int], Iterator[T]], rows: int) -> Iterator[T]:
    """What `attempt(rows)` yields. If memory runs out, it is called again with half the rows.

    Half is rounded up: 5 rows, 3, 2, 1. When the next attempt begins, nothing refers to the last one any more, and its
    memory is free. `attempt` itself has to know what was already achieved.

    Args:
        attempt: called with the number of rows to use; it makes an engine and decodes.
        rows: the number of rows to begin with.

    Raises:
        MemoryError: memory runs out with one row.
    """
    while True:
        try:
            yield from attempt(rows)
            return
        except Exception as error:
            cause = out_of_memory(error)
            if cause is None:
                raise
            reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
            if rows == 1:
                raise MemoryError(
                    f"out of memory with a single row ({reason}); lower max_gen_toks (max_new_tokens) or max_length, "
                    "use a smaller dtype, or spread the model by parallelize=True"
                ) from error
            del cause
        # Outside the handler: while an exception is being handled, its traceback keeps the engine alive.
        release()
        fewer = (rows + 1) // 2
        logger.warning(
            "out of memory with %d rows (%s): going on with %d; nothing that was settled is lost, proposals in flight "
            "are decoded again. To avoid it, start with batch_size (max_rows) %d, or lower max_gen_toks "
            "(max_new_tokens)",
            rows, reason, fewer, fewer,
        )  # fmt: skip
        rows = fewer


def release() -> None:
    """Free memory in reference cycles, such as an exception's traceback and its frames."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> BaseException | None:
    """The exception that says that a device or the machine ran out of memory: `error`, or one that led to it, or None.

    Running out of memory while a CUDA graph is captured ends in an error about the capture, which is raised while the
    first error is being handled.
    """
    link: BaseException | None = error
    while isinstance(link, (RuntimeError, MemoryError)):
        if isinstance(link, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(link):
            return link
        if any(saying in str(link) for saying in _SAYINGS):
            return link
        link = link.__context__
    return None
