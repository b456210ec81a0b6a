"""Generated passwords."""

from __future__ import annotations

import string

from broker.secret import Secret, random_below, random_text

LENGTH = 24
"""Vault's default rule asks for 20 characters. That would be 117 bits in this form, and 128 are promised; a dash at one of
22 places and 23 letters and digits have 141."""
_LETTERS_AND_DIGITS = string.ascii_letters + string.digits
_REQUIRED = tuple(frozenset(kind) for kind in (string.ascii_uppercase, string.ascii_lowercase, string.digits))


def new_password() -> Secret:
    """A fresh password of 24 ASCII characters that no quoting, URL or SASLprep changes.

    Vault's default rule holds: letters, digits and dashes, at least one capital, one small letter, one digit and one dash.
    The dash stands neither first nor last, so no command line takes the password for an option.
    """
    while True:
        body = random_text(LENGTH - 1, _LETTERS_AND_DIGITS)
        # Drawing the whole body again keeps all passwords equally likely; one in fifty is drawn twice.
        if all(kind.intersection(body) for kind in _REQUIRED):
            place = 1 + random_below(LENGTH - 2)
            return Secret(f"{body[:place]}-{body[place:]}")
