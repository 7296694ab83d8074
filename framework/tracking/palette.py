"""Colours and resolution of all plots of a run."""

BLUE = "#2f6db3"
ORANGE = "#d9792b"
GREY = "#5a6270"
LIGHT = "#e3e6ea"
DOTS_PER_INCH = 150
