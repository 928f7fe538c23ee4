"""Step 3 of a run: from costs and devices to a plan."""
