"""The bench runs from end to end, with numbers too small to mean anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROWS = {
    "raw driver: CREATE ROLE",
    "broker: on demand",
    "broker: prepared users",
    "raw driver: DROP ROLE, 20 in batches of 256",
    "broker: revoke 20 at once, plain",
    "broker: revoke 20 at once, a session each",
    "broker: revoke one by one, a session each",
    "broker: revoke 20 at once, a session each and on a standby",
    "broker: revoke one by one, a session each and on a standby",
    "broker: revoke 20 at once, a table each",
    "raw driver: DROP ROLE, 30 in batches of 256",
    "broker: 30 leases due at once",
    "broker: 30 leases due at once, prepared leases asked for meanwhile",
    "broker: prepared, nothing else to do",
    "broker: prepared, while 30 leases end",
    "broker: 30 leases due at once, on demand leases asked for meanwhile",
    "broker: on demand, nothing else to do",
    "broker: on demand, while 30 leases end",
    "broker: prepared users, 50 leases in the store",
    "broker: prepared users, 100 leases in the store",
    "broker: reconcile 40 users with as many leases",
    *(
        f"broker: {what}, {login} login, 30 live users"
        for what in ("prepared users", "revoke those at once")
        for login in ("superuser", "plain CREATEROLE")
    ),
}
TINY = [
    *("--clients", "1", "--clients", "2", "--seconds", "0.2", "--rounds", "1", "--prepared", "200"),
    *("--scram-iterations", "1", "--revoked", "20", "--due", "30", "--scale", "100"),
    *("--limited", "30", "--reconcile", "40", "--standby"),
]


def test_broker_bench_measures_and_prints_every_row(tmp_path: Path) -> None:
    """One command, no error in any row, every row in the table and in the JSON."""
    file = tmp_path / "bench.json"
    command = [sys.executable, "-c", "from broker.cli.main import main; main()", "bench", *TINY, "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env={"COLUMNS": "200", "PATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads(file.read_bytes())
    assert {row["label"] for row in measured["rows"]} >= ROWS
    assert all(row["errors"] == 0 and row["done"] > 0 for row in measured["rows"])
    for label in ROWS:
        assert label in done.stdout
