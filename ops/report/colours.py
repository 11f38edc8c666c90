"""The colours of the plots: stand-ins that a drawing uses, and the CSS variables that replace them.

A plot is drawn once and shown in light mode, in dark mode and on paper. It is therefore drawn with
stand-in colours that nothing else uses; `inline_svg` replaces each by a variable of `page.css`,
which says what the colour looks like in each mode.
"""

OURS = "#010203"
"""What our index measured: recall, effects, current histograms."""

EXACT = "#020304"
"""Exact search, the baseline beside ours."""

LIMIT = "#030405"
"""The limit of a monitor."""

REFERENCE = "#040506"
"""The reference that what arrives now is compared with."""

GOOD = "#050607"
"""Success."""

BAD = "#060708"
"""Failure and alarm."""

TEXT = "#070809"
"""Titles and labels."""

MUTED = "#08090a"
"""Secondary text: axis labels, notes."""

GRID = "#090a0b"
"""Grid lines and axes."""

CSS_VARIABLES = {
    OURS: "--ours",
    EXACT: "--exact",
    LIMIT: "--limit",
    REFERENCE: "--reference",
    GOOD: "--good",
    BAD: "--bad",
    TEXT: "--text",
    MUTED: "--muted",
    GRID: "--grid",
}
"""The variable of `page.css` by stand-in."""
