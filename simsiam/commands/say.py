"""How commands report: a title at the left, what is said beside it, and long lists cut short."""

_TITLE = 12  # characters before what is said
_SHOWN = 20  # lines of a list


def say(title: str, text: str) -> None:
    """A line."""
    line = f"{title:<{_TITLE}}{text}"
    print(line.encode("utf-8", "backslashreplace").decode(), flush=True)  # a file's name need not be UTF-8


def say_first(lines: list[str]) -> None:
    """The first lines of a list, and how many more there are."""
    for line in lines[:_SHOWN]:
        say("", f"  {line}")
    if len(lines) > _SHOWN:
        say("", f"  and {len(lines) - _SHOWN:,} more")


def counted(number: int, one: str, several: str = "") -> str:
    """`1 file`, `1,200 files`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def span(seconds: float) -> str:
    """A time as people say it: `3.2 days`, `40 s`."""
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
