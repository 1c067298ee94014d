"""Which line looks how, in figures and on the report's page: a method has a hue and dashes of its
own, its compute classes are shades of it with markers of their own."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

# after Okabe and Ito, for all eyes; black first. page.css has the same
COLORS = (
    "#000000",
    "#0060b5",
    "#d55e00",
    "#009e73",
    "#c45a9b",
    "#4aa8e0",
    "#b58900",
    "#6f3cc4",
    "#8a3b12",
)
# lengths of lines and gaps, in widths of a line
DASHES = ((), (5, 2), (1.2, 1.2), (7, 2, 1.5, 2), (3, 1.2))
MARKERS = 8  # shapes of markers
PALEST = 0.45  # share of white in the first of several shades


class Place(NamedTuple):
    """Of a line among those that are drawn with it."""

    method: int  # its method's number
    member: int  # its number among the lines of that method
    members: int

    @property
    def hue(self) -> int:
        """Its number in COLORS."""
        return self.method % len(COLORS)

    @property
    def color(self) -> str:
        """#rrggbb: of several lines of a method the last has the full hue."""
        full = COLORS[self.hue]
        channels = [int(full[at : at + 2], 16) for at in (1, 3, 5)]
        mixed = [round(channel + (255 - channel) * self.paleness) for channel in channels]
        return "#" + "".join(f"{channel:02x}" for channel in mixed)

    @property
    def paleness(self) -> float:
        """Share of the paper's colour in its shade."""
        if self.members == 1:
            return 0.0
        return PALEST * (1 - self.member / (self.members - 1))

    @property
    def dashes(self) -> tuple[float, ...]:
        """Empty for a whole line."""
        return DASHES[self.method % len(DASHES)]

    @property
    def marker(self) -> int:
        """Its number among the shapes of markers."""
        number = self.method if self.members == 1 else self.member
        return number % MARKERS


def places(methods: Sequence[Hashable]) -> list[Place]:
    """The place of each line, from the methods that they are of, in the lines' order."""
    numbers = {method: number for number, method in enumerate(dict.fromkeys(methods))}
    sizes = {method: methods.count(method) for method in numbers}
    begun = dict.fromkeys(numbers, 0)
    result = []
    for method in methods:
        result.append(Place(numbers[method], begun[method], sizes[method]))
        begun[method] += 1
    return result
