"""The ensemble editor: a small Backpack's edited logits, added to a large model's."""
