"""Who may do it: tokens, and the one step that authorises and audits."""
