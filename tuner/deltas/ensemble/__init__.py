"""A small model's edit, added to the logits of a large one."""
