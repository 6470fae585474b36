"""The planner's estimates of published training runs, as the table in docs/bench/plans.md.

python tools/plan_calibration.py
"""

from kaleido_jax.parallel import calibration

if __name__ == "__main__":
    print("\n".join(calibration.table()))
