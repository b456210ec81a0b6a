"""The part of Go's text/template that username templates are written in, and Vault's functions for it."""
