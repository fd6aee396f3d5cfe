"""The report on the compiled kernels: `rows.py` compiles, `rules.py` finds faults, `tables.py` writes."""
