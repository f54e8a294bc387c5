"""How many rows a decode step runs on, and which rows change places for it. Both follow from counts alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Widths:
    """Decides the width of each step. The rows in places [0, width) take part, and all busy rows are among them.

    Busy rows change places with idle ones once the idle rows between them have cost more than the moves would. No clock
    is involved, so that the same run makes the same moves.

    Args:
        rows: rows of the batch.
        per_doubling: number of widths for each doubling of the rows; on a GPU each needs its own graph.
    """

    MOVE_COST = 2  # cost of moving one row to another place, in steps of one row

    def __init__(self, rows: int, per_doubling: int) -> None:
        self.rows, self.per_doubling = rows, per_doubling
        self._idled = 0  # steps of idle rows that could have been saved by moving the busy rows together

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
        """The smallest width that holds so many rows."""
        doubling = 1 << max(0, (rows - 1).bit_length() - 1)  # the largest power of two below `rows`
        step = max(1, doubling // self.per_doubling)
        return min(-(-rows // step) * step, self.rows)
