"""Model families: one folder each, with config.py (sizes), modeling.py (maths) and params.py (weight names as data)."""
