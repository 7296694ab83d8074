"""Numbers with units as text for lines and tables."""

_HOUR, _DAY = 3600.0, 86400.0


def format_gb(num_bytes: float) -> str:
    """Returns bytes in GB, or in MB."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"


def format_seconds(seconds: float) -> str:
    """Returns seconds in s, or in ms."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


def format_duration(seconds: float) -> str:
    """Returns seconds in days, or in hours."""
    return f"{seconds / _DAY:,.1f} days" if seconds >= 2 * _DAY else f"{seconds / _HOUR:,.1f} hours"
