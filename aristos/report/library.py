"""plotly.js, which draws the plots of a page: it is embedded in the page, so that the page needs no network."""

from __future__ import annotations

from ..errors import EnvironmentProblem


def script() -> str:
    """The text of plotly.js from the package plotly. Raises EnvironmentProblem if it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise EnvironmentProblem("plotly is not installed: pip install 'aristos[report]', or plotly alone") from None
    return get_plotlyjs()
