"""What an edit did: success, deviation, the budget, generation."""
