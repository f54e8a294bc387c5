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

# Besides those that accelerate knows: of libraries that allocate for themselves, and of CUDA outside torch's allocator.
_SAYINGS = ("bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def retry_with_fewer_rows(attempt: Callable[[int], Iterator[T]], rows: int) -> Iterator[T]:
    """What `attempt(rows)` yields; where memory runs out, what it yields when called again with half the rows.

    Half is rounded up: 5 rows, 3, 2, 1. Nothing of an attempt is referred to any more, and its memory is free, when the
    next one begins; what has been achieved `attempt` has to know.

    Args:
        attempt: called with the rows to use; makes an engine and decodes.
        rows: to begin with.

    Raises:
        MemoryError: out of memory with one row.
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
        # Not in the handler: while an exception is being handled, its traceback keeps the engine alive.
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
    """Free what nobody refers to any more: an exception's traceback and its frames refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> BaseException | None:
    """The exception that says that a device's or the machine's memory ran out: `error`, or one that led to it.

    What runs out of memory inside a CUDA graph capture ends in an error about the capture, raised while the first is
    being handled. None where there is no such exception.
    """
    link: BaseException | None = error
    while isinstance(link, (RuntimeError, MemoryError)):
        if isinstance(link, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(link):
            return link
        if any(saying in str(link) for saying in _SAYINGS):
            return link
        link = link.__context__
    return None
