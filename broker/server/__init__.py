"""The HTTP door: Vault's API."""
