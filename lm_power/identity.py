"""Which weights drew a completion: name, adapter, fingerprint; written and parsed here alone."""

from __future__ import annotations

import dataclasses
import re

_FINGERPRINT = re.compile(r"@([0-9a-f]{16})$")  # what `lm_power.fingerprint` makes; a name may have an @ of its own

_TOLD = re.compile(r" \((?:root |weights not known).*\)$")  # by a server: see `lm_power.remote.places.Card`


@dataclasses.dataclass(frozen=True)
class Identity:
    """The weights of a run, as stores and logs record them: "NAME[+peft=ADAPTER[+merged]][+RandW][@FINGERPRINT]".

    Attributes:
        pretrained: hub id or folder of the base.
        peft: hub id or folder of the adapter on top; None for none.
        randomized: the weights were freshly initialised.
        fingerprint: 16 hex digits over the weights; None where they are not known.
        merged: the adapter was merged into the base.

    >>> Identity.parse("runs/m@v2+peft=a@0123456789abcdef")
    Identity(pretrained='runs/m@v2', peft='a', randomized=False, fingerprint='0123456789abcdef', merged=False)
    >>> str(Identity("m", peft="a", merged=True)), Identity.parse("m+peft=a+merged").merged
    ('m+peft=a+merged', True)
    >>> str(Identity.parse("runs/m@v2")), Identity.parse("runs/m@v2").fingerprint
    ('runs/m@v2', None)
    """

    pretrained: str
    peft: str | None = None
    randomized: bool = False
    fingerprint: str | None = None
    merged: bool = False

    @classmethod
    def parse(cls, text: str) -> Identity:
        """The identity that `str` wrote. Any text can be parsed."""
        found = _FINGERPRINT.search(text)
        name = text if found is None else text[: found.start()]
        randomized = name.endswith("+RandW")
        pretrained, _, peft = name.removesuffix("+RandW").partition("+peft=")
        merged = peft.endswith("+merged")
        adapter = peft.removesuffix("+merged") or None
        return cls(pretrained, adapter, randomized, None if found is None else found[1], merged)

    @property
    def name(self) -> str:
        """All but the fingerprint."""
        adapter = "" if self.peft is None else f"+peft={self.peft}{'+merged' * self.merged}"
        return f"{self.pretrained}{adapter}{'+RandW' * self.randomized}"

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return self.name if self.fingerprint is None else f"{self.name}@{self.fingerprint}"

    @property
    def key(self) -> str:
        """What identifies the weights: the fingerprint, or the name if there is none."""
        return self.fingerprint or self.name

    @property
    def as_named(self) -> Identity:
        """As a command line would name it: without fingerprint, and without what a server tells of it in brackets."""
        return dataclasses.replace(self, pretrained=_TOLD.sub("", self.pretrained), fingerprint=None)

    def same_weights(self, other: Identity) -> bool:
        """Whether both name the same weights: by fingerprint if both have one, else by name."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint == other.fingerprint
        return self.name == other.name
