"""The colours of the plots: stand-ins that a drawing uses, and the CSS variables that replace them.

A plot is drawn once and shown in light mode, in dark mode and on paper. It is therefore drawn with
stand-in colours that nothing else uses; `inline_svg` replaces each by a variable of `page.css`,
which says what the colour looks like in each mode.
"""

# What our index measured: recall, effects, current histograms.
OURS = "#010203"

# Exact search, the baseline beside ours.
EXACT = "#020304"

# The limit of a monitor.
LIMIT = "#030405"

# The reference that what arrives now is compared with.
REFERENCE = "#040506"

# Success.
GOOD = "#050607"

# Failure and alarm.
BAD = "#060708"

# Titles and labels.
TEXT = "#070809"

# Secondary text: axis labels, notes.
MUTED = "#08090a"

# Grid lines and axes.
GRID = "#090a0b"

# The variable of `page.css` by stand-in.
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
