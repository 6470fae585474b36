"""Preference pairs (AnyID, section 3.6): sampled by a model, judged along two tracks, selected, and trained on."""
