"""Valid files of every kind, changed at random: each is accepted, or refused in words."""
