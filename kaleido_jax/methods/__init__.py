"""Methods: each one short file that says, in terms of layouts, positions and masks, what its paper changes."""
