"""What became of every weight of a file and of every weight of the network."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal[
    "loaded", "repeated", "summed", "duplicate", "conflict", "mismatch", "unknown", "unused", "reinitialised"
]
COPIED = ("loaded", "repeated", "summed")


@dataclass(frozen=True, slots=True)
class Fate:
    """One weight.

    Attributes:
        given: Its name in the file; None if the file lacks it.
        own: Its name in the network; None if the network lacks it, or has it from another name in the file.
        outcome: `loaded` as it is, `repeated` or `summed` over image channels; `duplicate` of another name in the
            file with the same values, `conflict` with others; `mismatch` of shapes, so the network keeps its first
            values; `unknown` to the network; `unused` for a known reason; `reinitialised`.
        note: Shapes or reason.
    """

    given: str | None
    own: str | None
    outcome: Outcome
    note: str = ""


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What a transfer of released weights did.

    Attributes:
        form: Name of the format.
        fates: One for each weight of the file, then one for each of the network that the file lacks.
        inert: Names of classes in the file that were not built; see `released.pickles`.
    """

    form: str
    fates: tuple[Fate, ...]
    inert: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many weights met each outcome, and how many file and network hold.

        `file` is the sum of all but reinitialised; `network` that of loaded, repeated, summed,
        mismatch and reinitialised.
        """
        found = Counter(fate.outcome for fate in self.fates)
        sides = {
            "file": sum(fate.given is not None for fate in self.fates),
            "network": sum(fate.own is not None for fate in self.fates),
        }
        return {**sides, **dict(sorted(found.items()))}

    def table(self) -> str:
        """One line for each weight: outcome, name in the file, name in the network if it is another, note."""
        width = max((len(fate.given or "-") for fate in self.fates), default=0)
        lines: list[str] = []
        for fate in self.fates:
            own = "" if fate.own in (fate.given, None) else f"-> {fate.own}"
            line = f"{fate.outcome:<13} {fate.given or '-':<{width}} {own} {f'({fate.note})' if fate.note else ''}"
            lines.append(line.rstrip())
        return "\n".join(lines)

    def text(self) -> str:
        """The report as lines to print: counts, then all weights that were not simply loaded."""
        counts = self.counts()
        copied = sum(counts.get(outcome, 0) for outcome in COPIED)
        lines = [f"{self.form}: loaded {copied} of {counts['network']} weights from {counts['file']} in the file"]
        lines += [f"{outcome} {n}" for outcome, n in counts.items() if outcome not in ("file", "network", "loaded")]
        if self.inert:
            lines.append(f"not built: {', '.join(self.inert)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, in the form of `TransferReport.to_dict` and more."""
        own = {fate.own: fate.outcome for fate in self.fates if fate.own is not None}
        return {
            "format": self.form,
            "loaded": [name for name, outcome in own.items() if outcome in COPIED],
            "reinitialised": [name for name, outcome in own.items() if outcome not in COPIED],
            "unused": [fate.given for fate in self.fates if fate.given is not None and fate.own is None],
            "repeated": [name for name, outcome in own.items() if outcome == "repeated"],
            "counts": self.counts(),
            "inert": list(self.inert),
            "table": self.table(),
        }
