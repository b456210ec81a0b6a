"""The settings of the audit log."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from broker.audit.settings import AuditSettings


def test_every_field_has_a_default_and_a_sentence() -> None:
    """An operator who says nothing gets a durable file, and the reference can be made from the model."""
    settings = AuditSettings()
    assert (settings.device, settings.path) == ("file", None)
    assert all(field.description for field in AuditSettings.model_fields.values())


@pytest.mark.parametrize("wrong", [{"file": "x"}, {"device": "syslog"}, {"waiting_max": 0}])
def test_mistakes_are_refused(wrong: dict[str, object]) -> None:
    """An unknown key, device or impossible limit does not pass."""
    with pytest.raises(ValidationError):
        AuditSettings.model_validate(wrong)
