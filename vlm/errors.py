"""Errors that are meant for the person at the page or the prompt, not for a stack trace."""


class UserError(Exception):
    """Something the user can act on; ``str(error)`` is one clear sentence."""
