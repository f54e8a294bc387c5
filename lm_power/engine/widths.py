"""How many rows a decode step runs on, and which rows change places so that they suffice: by counts alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Widths:
    """Decides the width of each step: the rows in places [0, width) take part, all busy ones among them.

    Busy rows change places with idle ones once the idle ones between them have cost more than the moves. No clock has a
    part in it, so that the same run makes the same moves.

    Args:
        rows: of the batch.
        per_doubling: widths for each doubling of the rows; on a GPU each is a graph of its own.
    """

    MOVE_COST = 2  # of one row to another place, in steps of a row

    def __init__(self, rows: int, per_doubling: int) -> None:
        self.rows, self.per_doubling = rows, per_doubling
        self._idled = 0  # steps of idle rows that the busy ones would have spared by moving together

    def next(self, busy: NDArray[np.bool_], places: NDArray[np.int64]) -> tuple[int, list[tuple[int, int]]]:
        """The width of the next step, and the pairs of rows that have to change places before it.

        Args:
            busy: [rows], at least one of them.
            places: [rows], where each row lies.
        """
        at_work = np.flatnonzero(busy)
        reached = self.rounded(int(places[at_work].max()) + 1)
        needed = self.rounded(len(at_work))
        if reached == needed:
            self._idled = 0
            return reached, []
        self._idled += reached - needed
        outside = at_work[places[at_work] >= needed].tolist()
        if self._idled < self.MOVE_COST * len(outside):
            return reached, []
        self._idled = 0
        inside = np.flatnonzero(~busy & (places < needed)).tolist()
        return needed, list(zip(outside, inside, strict=False))

    def rounded(self, rows: int) -> int:
        """The least width of so many rows."""
        doubling = 1 << max(0, (rows - 1).bit_length() - 1)  # the largest power of two below `rows`
        step = max(1, doubling // self.per_doubling)
        return min(-(-rows // step) * step, self.rows)
