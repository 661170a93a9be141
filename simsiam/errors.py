"""A user's mistake: one sentence that names the thing, the place and the remedy."""


class UserError(Exception):
    """Raised for anything the user can put right; the entry points print it and exit with code 2."""


EXIT_USER_ERROR = 2
