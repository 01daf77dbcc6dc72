"""Eight scenes of a guarded application, each figure checked: `make demo`.

Read `llm_budget.toml`, the budgets, and `app.py` and `worker.py`, which are what you would
write. `scenes.py` is what callers do to them and what is expected of it; the rest is the
theatre: `stage.py` (users, bills, counters), `servers.py` (processes), `board.py` (the table).
"""
