"""One look for the figures of the "Trim bits" tab: colours that colour-blind readers can tell apart, titles that are sentences."""

from __future__ import annotations

import textwrap

import plotly.graph_objects as go

# The five stops of the first page's ramp (viridis); over 0 to 16 bits they fall on 0, 4, 8, 12 and 16.
STOPS = ("rgb(68,1,84)", "rgb(59,82,139)", "rgb(33,145,140)", "rgb(94,201,98)", "rgb(253,231,37)")
BITS_SCALE = [[index / (len(STOPS) - 1), colour] for index, colour in enumerate(STOPS)]
MOST_BITS = 16
# Okabe and Ito's palette; its blue is lighter, for dark pages.
BLUE, ORANGE, GREEN, PINK, GREY, RED = "#2185c9", "#E69F00", "#009E73", "#CC79A7", "#8a8f98", "#D55E00"
# Readable on white; the page's style sheet replaces it on dark pages.
INK, LINE = "#334155", "rgba(128,134,148,0.28)"
# What the pictures do not need; saving one as PNG and resetting its axes are left.
BUTTONS = ["zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "toggleSpikelines", "hoverClosest", "hoverCompare"]
# Characters of a title's line that fit a figure on a page of 400 pixels.
TITLE_WIDTH = 40


def figure(title: str, height: int, legend_rows: int = 0, **layout) -> go.Figure:
    """An empty figure in the look of :func:`dress`."""
    return dress(go.Figure(), title, height, legend_rows, **layout)


def dress(chart: go.Figure, title: str, height: int, legend_rows: int = 0, **layout) -> go.Figure:
    """Gives a figure the look: transparent, no zoom by dragging (a finger must be able to scroll past it).

    title: a sentence, wrapped to fit a narrow page; height: pixels of the axes; legend_rows: of the legend on a narrow page.
    """
    lines = textwrap.wrap(title, TITLE_WIDTH)
    top, foot = 18 + 20 * len(lines), 46 + 20 * legend_rows
    settings = {
        "title": {
            "text": "<br>".join(lines),
            "x": 0.01,
            "xanchor": "left",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
            "pad": {"t": 10},
            "font": {"size": 14.5},
        },
        "height": height + top + foot,
        "margin": {"l": 52, "r": 14, "t": top, "b": foot},
        "font": {"size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "rgba(15,18,26,.94)", "bordercolor": "rgba(15,18,26,.94)", "font": {"color": "#fff"}},
        # Beneath the title of the axis; what a wide page does not need stays empty at the foot.
        "legend": {"orientation": "h", "x": 0, "y": -42 / height, "yanchor": "top", "font": {"size": 11}},
        "modebar": {"remove": BUTTONS, "bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "dragmode": False,
        "template": None,
    }
    chart.update_layout(**settings)
    chart.update_layout(**layout)
    axis = {"gridcolor": LINE, "zerolinecolor": LINE, "linecolor": LINE, "ticks": "", "title_font_size": 12, "title_standoff": 6}
    chart.update_xaxes(**axis)
    chart.update_yaxes(**axis)
    return chart
