"""The styles of a result's picture, which the command line names before it loads anything."""

from enum import StrEnum


class Style(StrEnum):
    """How classes are painted: over the photo's brightness, without the photo, or as borders over the photo."""

    overlay = "overlay"
    flat = "flat"
    outline = "outline"
