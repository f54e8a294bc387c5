"""What the doctor has found out."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """What became of one part.

    Attributes:
        part: its name.
        verdict: "works"; "fails"; "absent" where this machine, or this installation, does not have it, or it was not
            tried.
        why: what was seen, in a sentence.
        remedy: what to set or install; empty where there is nothing to do.
    """

    part: str
    verdict: Literal["works", "fails", "absent"]
    why: str
    remedy: str = ""
