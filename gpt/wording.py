"""Numbers and lists in sentences."""


def duration(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
