"""The rise of the loss on general text, and the budgets it must keep."""
