"""Everything that can go wrong, as one hierarchy.

A class means something that the caller can act on; its docstring is its default message; facts are attributes.
HTTP statuses are given to these classes in `broker.server.errors`, exit codes in `broker.cli.exits`, nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence


class BrokerError(Exception):
    """something went wrong"""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


# --- the caller can put these right -----------------------------------------------------------------------------


class InvalidRequest(BrokerError):
    """the request is not valid"""


class PermissionDenied(BrokerError):
    """permission denied"""


class NotFound(BrokerError):
    """no such object"""


class UnsupportedPath(NotFound):
    """unsupported path"""


class UnsupportedOperation(BrokerError):
    """unsupported operation"""


class BodyTooLarge(BrokerError):
    """http: request body too large"""


class LimitExceeded(BrokerError):
    """a limit was reached; `limit` names it, and it may be asked again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, limit: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after_s = retry_after_s


# --- the world around the broker failed ---------------------------------------------------------------------------


class Unavailable(BrokerError):
    """something that the broker needs does not answer; it may be asked again after `retry_after_s` seconds."""

    def __init__(self, message: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AuditUnavailable(Unavailable):
    """the audit log can't be written, so the request was refused"""


class StoreUnavailable(Unavailable):
    """the store can't be written, so nothing was done"""


class OutcomeUnknown(Unavailable):
    """the store did not say whether the write happened; it may have"""


# --- a database said no --------------------------------------------------------------------------------------------


class EngineError(BrokerError):
    """the database refused"""


class DatabaseUnavailable(EngineError, Unavailable):
    """the database can't be reached, is starting, read-only, out of connections or too slow; nothing may be assumed done."""

    def __init__(self, message: str = "", *, retry_after_s: int = 1) -> None:
        Unavailable.__init__(self, message, retry_after_s=retry_after_s)


class UserNameTaken(EngineError):
    """a user of that name exists already and was left untouched; take another name"""


class InstructionsFailed(EngineError):
    """the role's own statements failed in the database; they were undone"""


class UserMissing(EngineError):
    """the user does not exist in the database"""


class UserRemains(EngineError):
    """the user can't be removed yet.

    `remedy` lists statements which, run by the owner of the named objects, let the removal finish.
    """

    def __init__(self, message: str = "", *, remedy: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.remedy = tuple(remedy)


class WorkContinues(UserRemains):
    """the user can't be removed yet: it left more than one call takes away, and this one came further; to be called again soon.

    It counts as no failed attempt.
    """


class EngineMissing(EngineError):
    """no plugin for this kind of database is installed and sound"""


# --- what is kept can't be trusted, or the program was set up wrongly -----------------------------------------------


class SealBroken(BrokerError):
    """a sealed value does not open: wrong key, damaged, or moved from another place"""


class StoreDamaged(BrokerError):
    """the store file is damaged or not a store"""


class StoreInUse(BrokerError):
    """another broker has this store open"""


class KeyUnusable(BrokerError):
    """the master key can't be had"""


class ConfigError(BrokerError):
    """the configuration is not valid; `mistakes` has one line for each, led by its key."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(mistakes)


class AuditBroken(BrokerError):
    """the audit log's chain is broken"""


class StateConflict(BrokerError):
    """the lease is not in a state that allows this"""
